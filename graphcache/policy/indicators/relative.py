"""Relative change since the last computed step: first-block caching and DBCache."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from graphcache.policy.indicators.base import Tensors
from graphcache.policy.indicators.limits import Limits
from graphcache.policy.probes import HeadStream, Probe
from graphcache.policy.scalars import Scalar


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """``mean|new - old| / mean|old|``, in the dtype of the values."""
    return (new - old).abs().mean() / old.abs().mean()


@dataclass(frozen=True)
class RelativeChange:
    """How far a value is from what it was at the last computed step, relative L1.

    The indicator of first-block caching (ParaAttention) and DBCache (cache-dit): the
    value is what the head blocks add to the latents' stream. It is compared with that
    of the last step that was *computed*, so that slow drift adds up. The limits are
    DBCache's; a limit that is reached computes.

    Args:
        probe: Observes one value, or two of which the difference is measured.
        inclusive: Whether a score equal to the threshold computes.
        max_run: Most steps reused in a row.
        max_reused: Most steps reused in the whole loop.
        max_drift: Most that the scores of the steps reused in a row may add up to.

    Raises:
        PolicyError: If a limit is not positive.
    """

    probe: Probe = field(default_factory=HeadStream)
    inclusive: bool = False
    max_run: int | None = None
    max_reused: int | None = None
    max_drift: float | None = None

    def __post_init__(self) -> None:
        _ = self.limits

    @property
    def limits(self) -> Limits:
        """The limits."""
        return Limits(self.max_run, self.max_reused, self.max_drift)

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """It reads none."""
        return ()

    def initial(self, observed: Tensors) -> Tensors:
        """The value of the last computed step, and the counts if there are limits."""
        value = _value(observed)
        return [value, *self.limits.initial(value)]

    def measure(self, observed: Tensors, buffers: Tensors, scalars: Tensors) -> Tensors:
        """The score and the value."""
        value = _value(observed)
        score = relative_change(value, buffers[0])
        for counts in buffers[1:]:
            score = self.limits.guard(score, counts)
        return [score, value]

    def update(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """Later values are compared with this one."""
        return [measured[1], *map(self.limits.computed, buffers[1:])]

    def carry(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """Later values are compared with the same one as before."""
        score = measured[0]
        counts = [self.limits.reused_after(held, score) for held in buffers[1:]]
        return [buffers[0], *counts]


def _value(observed: Tensors) -> Tensor:
    if len(observed) == 1:
        return observed[0]
    before, after = observed
    return after - before
