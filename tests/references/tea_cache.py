"""TeaCache: all blocks are reused until their input has changed by enough.

The input is the one that the first block's norm and modulation have shaped, before
attention. Its relative L1 change from the step before is rescaled by a polynomial and
added up; blocks run when the sum reaches the threshold, and the sum starts over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tests.parts import attentions, trunk
from tests.references.middle import Middle
from tests.references.patching import Forward, Log, recording, replaced


@contextmanager
def tea_cache(
    module: nn.Module,
    threshold: float,
    coefficients: Sequence[float] = (1.0, 0.0),
    last_step: int | None = None,
    blocks: Sequence[str] | None = None,
) -> Iterator[Log]:
    """Reuse what the blocks add while the accumulated change is below the threshold.

    Args:
        module: The transformer.
        threshold: The sum at which to compute.
        coefficients: Of the rescaling polynomial, highest power first.
        last_step: A step that always computes, besides the first.
        blocks: The blocks in order, if not all of the trunk.
    """
    paths = trunk(module) if blocks is None else list(blocks)
    first = module.get_submodule(paths[0])
    total, previous = 0.0, None

    def decide(args: Any, kwargs: Any) -> bool:
        nonlocal total, previous
        current = modulated(first, args, kwargs)
        before, previous = previous, current
        if before is None or log.step == last_step:
            total = 0.0
            return True
        change = float((current - before).abs().mean() / before.abs().mean())
        total += polynomial(coefficients, change)
        log.measured(total)
        if math.isfinite(total) and total < threshold:
            return False
        total = 0.0
        return True

    with recording(module) as log, Middle(module, paths, log, decide).replaced():
        yield log


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """The value by Horner's rule."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


class _Reached(Exception):
    """Carries the input of the attention that was reached."""


def modulated(block: nn.Module, args: Any, kwargs: Any) -> Tensor:
    """The hidden stream as the block's first attention gets it."""

    def reach(_: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            raise _Reached(kwargs["hidden_states"] if not args else args[0])

        return run

    original = type(block).forward
    try:
        with replaced(block, dict.fromkeys(attentions(block), reach)):
            original(block, *args, **kwargs)
    except _Reached as reached:
        hidden: Tensor = reached.args[0]
        return hidden
    raise ValueError("the first block has no attention")
