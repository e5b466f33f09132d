"""Step mask: say for every step whether it is computed.

Step computation masks are how cache-dit and others ship schedules that were tuned by
hand: ``1`` computes, ``0`` reuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphcache.policy.decisions import Mask
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import HoldOutput, HoldResidual, Predictor
from graphcache.policy.regions import Blocks, EachBlock, Selector


def step_mask(
    mask: Sequence[int],
    regions: Selector | None = None,
    *,
    predictor: Predictor | None = None,
    name: str = "mask",
) -> Policy:
    """A policy that computes the steps that a mask names.

    The first step is computed whatever the mask says. A loop that is known to have
    another number of steps is refused.

    Args:
        mask: One 0 or 1 per step.
        regions: What is cached; None is all blocks as one.
        predictor: What stands in for it; None holds what blocks add, and of other
            regions the outputs.
        name: Names the policy.

    Raises:
        PolicyError: If the mask is empty or holds anything but 0 and 1.
    """
    chosen: Selector = Blocks() if regions is None else regions
    if predictor is None:
        streams = isinstance(chosen, (Blocks, EachBlock))
        predictor = HoldResidual() if streams else HoldOutput()
    return Policy(name, chosen, Mask(tuple(mask), len(mask)), predictor)
