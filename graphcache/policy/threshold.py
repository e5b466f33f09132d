"""The dynamic decision: a score worked out in the graph against a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from graphcache.policy.checks import check_threshold
from graphcache.policy.decisions import Decision, Never
from graphcache.policy.indicators import Indicator


@dataclass(frozen=True)
class Comparison:
    """How a score is compared with its threshold, on the host.

    Attributes:
        inclusive: Whether a score equal to the threshold computes.
    """

    inclusive: bool = False

    def computes(self, score: float, threshold: float) -> bool:
        """Whether the region is computed. A score that is not finite computes."""
        if not math.isfinite(score) or threshold == 0:
            return True
        if self.inclusive:
            return score >= threshold
        return score > threshold


@dataclass(frozen=True)
class Threshold:
    """A dynamic decision: compute if a score of this step reaches a threshold.

    The score is worked out in the graph; the threshold is an input of the compiled
    program, so that another one never recompiles. A score that is not finite computes.

    Args:
        indicator: Measures the score.
        threshold: At or below it (or below it, as the indicator says) the region is
            reused.
        forced: Static: where it computes, the score is not asked.

    Raises:
        PolicyError: If the threshold is negative or not a number.
    """

    indicator: Indicator
    threshold: float
    forced: Decision = field(default_factory=Never)

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    @property
    def rule(self) -> Comparison:
        """How the score is compared."""
        return Comparison(self.indicator.inclusive)

    def computes(self, score: float, threshold: float) -> bool:
        """The decision by a score, on the host."""
        return self.rule.computes(score, threshold)

    def check(self, count: int | None) -> None:
        """Refuse a loop that the forced steps were not made for."""
        self.forced.check(count)
