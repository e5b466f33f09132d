"""First-block cache.

From ParaAttention, and in diffusers as ``FirstBlockCacheConfig``: the first block
always runs, and how much of what it adds has changed since the last computed step says
whether the others have to run, or what they added then is added again.
"""

from __future__ import annotations

from graphcache.policy.indicators import RelativeChange
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import HoldResidual
from graphcache.policy.probes import HeadStream
from graphcache.policy.regions import Blocks
from graphcache.policy.threshold import Threshold


def first_block_cache(threshold: float = 0.05) -> Policy:
    """A policy that holds what all blocks but the first add.

    Args:
        threshold: Reuse while the first block's residual differs from that of the last
            computed step by at most this, relative L1.

    Raises:
        PolicyError: If the threshold is negative or not a number.
    """
    return Policy(
        "first_block",
        Blocks(head=1),
        Threshold(RelativeChange(HeadStream(1)), threshold),
        HoldResidual(),
    )
