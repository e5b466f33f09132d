"""Policy = regions x decision x predictor."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphcache.errors import PolicyError
from graphcache.policy.decisions import Always, Decision
from graphcache.policy.predictors import HoldOutput, Predictor
from graphcache.policy.regions import Attention, Selector
from graphcache.policy.threshold import Threshold


@dataclass(frozen=True)
class Policy:
    """Which regions, when, and what stands in for them.

    Args:
        name: Names the decision in plans, printed programs and statistics; unique
            among policies that are compiled together.
        regions: Which regions of the graph.
        decision: When they are computed: a static decision, or a `Threshold`.
        predictor: What stands in for them when they are not.
        required: Whether it is an error if this policy matches no region although
            another one does.

    Raises:
        PolicyError: If the name is not an identifier.
    """

    name: str
    regions: Selector
    decision: Decision | Threshold
    predictor: Predictor = field(default_factory=HoldOutput)
    required: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise PolicyError(f"{self.name!r} cannot name a policy: not an identifier")


def never_reuse() -> Policy:
    """Gate every attention region and compute it at every step.

    The result equals the module bit for bit: the base line of every exactness test.
    """
    return Policy("always", Attention(), Always())
