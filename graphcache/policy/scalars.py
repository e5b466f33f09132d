"""Scalars: numbers that the host works out for each step and the graph reads.

They are inputs of the compiled program, so that no step needs a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphcache.errors import PolicyError
from graphcache.policy.decisions import Step


@dataclass(frozen=True)
class Scalar:
    """A number by name; in the graph a 0-dim f64 tensor.

    Args:
        name: Names the input of the program.
        of: Its value at a step.
    """

    name: str
    of: Callable[[Step], float]

    def __str__(self) -> str:
        return self.name


def _age(step: Step) -> float:
    return float(step.age)


def _sigma(step: Step) -> float:
    if step.sigma is None:
        raise PolicyError(
            "the noise level of each step is needed, and none can be had: call inside "
            "cache_context(name, sigma=...), or pass compile(scheduler=...)"
        )
    return step.sigma


STEP = Scalar("step", _age)
"""How many calls of the stream came before, since its buffers were empty.

At 0 the buffers hold zeros, so that a predictor must not read them. It is `Step.index`
unless something changed in mid-generation, and then it starts over; differences of two
of them are the same.
"""
SIGMA = Scalar("sigma", _sigma)
"""The noise level, 0 to 1."""
