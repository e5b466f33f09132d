"""Decisions: compute or reuse at this step?

A static decision is a function of the step alone, known on the host before the step
runs. `reachable_signatures` enumerates what a set of decisions can ever say together,
so that every graph is compiled before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from typing import Protocol

from graphcache.errors import PolicyError

Signature = tuple[bool, ...]
"""One bool per predicate, in the program's predicate order; True computes."""


@dataclass(frozen=True)
class Step:
    """Where the loop is.

    Attributes:
        index: How many calls of this stream came before, since its reset.
        timestep: In the scheduler's units, usually 0 to 1000; None if not known.
    """

    index: int
    timestep: float | None


class Decision(Protocol):
    """A static decision.

    It may depend on the step index only through ``index % period == 0``, and on the
    timestep only through the side of each of `edges` on which it lies.
    """

    @property
    def period(self) -> int:
        """The interval at which the decision can repeat, at least 1."""
        ...

    @property
    def edges(self) -> tuple[float, ...]:
        """Timesteps at which the decision can change; empty if it ignores them."""
        ...

    def computes(self, step: Step) -> bool:
        """Whether the region is computed at this step; True at index 0."""
        ...


@dataclass(frozen=True)
class Always:
    """Compute at every step: the policy that never reuses."""

    @property
    def period(self) -> int:
        """Every step."""
        return 1

    @property
    def edges(self) -> tuple[float, ...]:
        """None: the timestep does not matter."""
        return ()

    def computes(self, step: Step) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class Interval:
    """Compute every n-th step; reuse between, inside a timestep window.

    The decision of Pyramid Attention Broadcast (Zhao et al., arXiv 2408.12588) as
    diffusers defines it: steps are counted from the stream's first call whether or
    not they lie in the window, and the window is open at both ends.

    Args:
        every: Compute when ``index % every == 0``; 1 never reuses.
        window: Reuse only while ``low < timestep < high``, in the scheduler's units;
            None reuses at any timestep.

    Raises:
        PolicyError: If `every` is not a positive integer or the window not ordered.
    """

    every: int
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        integral = isinstance(self.every, int) and not isinstance(self.every, bool)
        if not integral or self.every < 1:
            raise PolicyError(
                f"an interval must be a positive integer, not {self.every!r}: "
                "n computes every n-th step and reuses between"
            )
        if self.window is not None:
            _check_window(self.window)

    @property
    def period(self) -> int:
        """The interval."""
        return self.every

    @property
    def edges(self) -> tuple[float, ...]:
        """The ends of the window."""
        return () if self.window is None else tuple(self.window)

    def computes(self, step: Step) -> bool:
        """Whether the step is a multiple of the interval, or outside the window.

        Raises:
            PolicyError: If there is a window and the timestep is not known.
        """
        if step.index % self.every == 0:
            return True
        if self.window is None:
            return False
        if step.timestep is None:
            raise PolicyError(
                f"the window {self.window} needs the timestep of each step, and none "
                "can be had. Pass compile(scheduler=...), set the config's "
                "current_timestep_callback, or give cache_context(timestep=...)."
            )
        return not self.window[0] < step.timestep < self.window[1]


def _check_window(window: tuple[float, float]) -> None:
    try:
        low, high = window
        ordered = low < high
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"a timestep window is a pair (low, high), not {window!r}"
        ) from error
    if not ordered:
        raise PolicyError(
            f"the timestep window {window!r} is not ordered: low must be below high "
            "(timesteps count down from about 1000 to 0)"
        )


def reachable_signatures(decisions: Mapping[str, Decision]) -> tuple[Signature, ...]:
    """Every combination the decisions can produce, the all-compute one first.

    Exact for decisions that keep the contract of `Decision`: at an index that is a
    multiple of exactly the periods in D, the least common multiple of D stands for
    all others; between two neighbouring edges any timestep stands for all others.
    """
    parties = tuple(decisions.values())
    found = {(True,) * len(parties): None}
    for index in _representative_indices(parties):
        for timestep in _representative_timesteps(parties):
            step = Step(index, timestep)
            found[tuple(decision.computes(step) for decision in parties)] = None
    return tuple(found)


def _representative_indices(decisions: tuple[Decision, ...]) -> list[int]:
    periods = sorted({decision.period for decision in decisions})
    subsets = chain.from_iterable(
        combinations(periods, size) for size in range(len(periods) + 1)
    )
    return sorted({math.lcm(*subset) for subset in subsets})


def _representative_timesteps(decisions: tuple[Decision, ...]) -> list[float]:
    edges = sorted({float(edge) for decision in decisions for edge in decision.edges})
    if not edges:
        return [0.0]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return [edges[0] - 1.0, *edges, *middles, edges[-1] + 1.0]
