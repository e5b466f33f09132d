"""DBCache: dual block cache.

From cache-dit: the first blocks always run, and how much of what they add has changed
since the last computed step says whether the middle has to run. The last blocks always
run too, and make good for a part of the error.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphcache.policy.decisions import Decision, Ends, Mask
from graphcache.policy.indicators import RelativeChange
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import HoldResidual, Predictor
from graphcache.policy.probes import HeadStream
from graphcache.policy.regions import Blocks
from graphcache.policy.threshold import Threshold


def dbcache(
    head: int = 8,
    tail: int = 0,
    *,
    threshold: float = 0.08,
    warmup: int = 8,
    max_run: int | None = None,
    max_reused: int | None = None,
    max_drift: float | None = None,
    mask: Sequence[int] | None = None,
    predictor: Predictor | None = None,
) -> Policy:
    """A policy that stands in for the middle blocks while the head's change is small.

    Args:
        head: How many blocks always run before the middle; at least 1.
        tail: How many always run after it.
        threshold: Reuse while the head's residual differs from that of the last
            computed step by less than this, relative L1.
        warmup: How many first steps of the schedule are computed.
        max_run: Most steps reused in a row.
        max_reused: Most steps reused in the whole loop.
        max_drift: Most that the differences of the steps reused in a row add up to.
        mask: One 0 or 1 per step: 1 computes, 0 asks the threshold.
        predictor: What stands in for the middle; None holds what it added.
            `TaylorResidual` forecasts it.

    Raises:
        PolicyError: If a number is out of its range, or the mask not one of 0 and 1.
    """
    indicator = RelativeChange(
        HeadStream(head),
        inclusive=True,
        max_run=max_run,
        max_reused=max_reused,
        max_drift=max_drift,
    )
    return Policy(
        "dbcache",
        Blocks(head, tail),
        Threshold(indicator, threshold, _forced(warmup, mask)),
        predictor or HoldResidual(),
    )


def _forced(warmup: int, mask: Sequence[int] | None) -> Decision:
    first = Ends(warmup)
    if mask is None:
        return first
    given = Mask(tuple(mask)).computed
    computed = (index < warmup or bool(value) for index, value in enumerate(given))
    return Mask(tuple(computed), len(given))
