"""MagCache.

Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache", arXiv
2506.09045, and in diffusers as ``MagCacheConfig``: the magnitude of what all blocks add
shrinks from step to step by a ratio that hardly depends on the prompt. The ratios of a
model, measured once, say how far off a held residual is, so that the schedule is known
before the loop begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.checks import check_count, check_number, check_threshold
from graphcache.policy.decisions import Mask
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import HoldResidual
from graphcache.policy.regions import Blocks


def magcache(
    ratios: Sequence[float] | Tensor,
    *,
    steps: int | None = None,
    threshold: float = 0.06,
    max_skip: int = 3,
    retention: float = 0.2,
) -> Policy:
    """A policy that holds what all blocks add while its magnitude hardly changes.

    Args:
        ratios: By step, the mean magnitude of what the blocks add over that of the step
            before; 1 at the first. `graphcache.calibrate` measures them.
        steps: The number of steps of the loop, to which ratios of another are
            resampled; None is theirs. For one of several models that share a loop, as
            Wan 2.2's two, it may be the number of those that this model sees.
        threshold: Reuse while the accumulated error is at most this.
        max_skip: Most steps reused in a row.
        retention: The part of the schedule, at its beginning, that is computed.

    Raises:
        PolicyError: If a number is out of its range, or the ratios are not a list of
            positive numbers.
    """
    given = _checked(ratios)
    count = len(given) if steps is None else steps
    check_count("the number of steps", count, 1)
    check_threshold(threshold)
    check_count("the most steps reused in a row", max_skip, 0)
    check_number("the part of the schedule that is computed", retention, 0, 1)
    schedule = magnitude_schedule(
        resampled(given, count), threshold, max_skip, retention
    )
    # The hooks of diffusers start over after the last step, and so does this.
    mask = Mask(schedule, count, wraps=True, own=True)
    return Policy("magcache", Blocks(), mask, HoldResidual())


def _checked(ratios: Sequence[float] | Tensor) -> Tensor:
    try:
        given = torch.as_tensor(ratios).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(f"magnitude ratios are numbers, not {ratios!r}") from error
    if given.ndim != 1 or len(given) == 0:
        raise PolicyError(
            "magnitude ratios are one number per step, and these have shape "
            f"{tuple(given.shape)}: give those of one stream"
        )
    if not bool(((given > 0) & given.isfinite()).all()):
        raise PolicyError(f"magnitude ratios are positive, and not all of {given} are")
    return given if given.is_floating_point() else given.float()


def resampled(ratios: Tensor, count: int) -> Tensor:
    """The ratios at `count` steps: those nearest in the schedule."""
    if len(ratios) == count:
        return ratios
    if count == 1:
        return ratios[-1:]
    scale = (len(ratios) - 1) / (count - 1)
    places = torch.round(torch.arange(count, dtype=torch.float32) * scale)
    return ratios[places.long()]


def magnitude_schedule(
    ratios: Tensor, threshold: float, max_skip: int, retention: float
) -> tuple[bool, ...]:
    """Which steps are computed.

    The arithmetic is that of 0-dim tensors in the dtype of the ratios, as in diffusers:
    a sum of errors next to the threshold falls on the same side.

    Args:
        ratios: One per step.
        threshold: Of the accumulated error.
        max_skip: Most steps reused in a row.
        retention: The part of the schedule that is computed, at its beginning.
    """
    first = int(retention * len(ratios) + 0.5)
    one = torch.ones((), dtype=ratios.dtype)
    computed: list[bool] = []
    ratio, error, run = one, one * 0, 0
    for step, own in enumerate(ratios):
        if step >= first:
            ratio, run = ratio * own, run + 1
            error = error + abs(1.0 - ratio)
        reused = step >= max(first, 1) and run <= max_skip and bool(error <= threshold)
        if not reused:
            ratio, error, run = one, one * 0, 0
        computed.append(not reused)
    return tuple(computed)
