"""A static and a dynamic policy that reuse on the tiny modules."""

from __future__ import annotations

from graphcache import Interval
from graphcache.policy import (
    Attention,
    Blocks,
    HoldResidual,
    Policy,
    RelativeChange,
    Threshold,
)

STATIC = Policy("attention", Attention(), Interval(3))
DYNAMIC = Policy(
    "tail", Blocks(head=1), Threshold(RelativeChange(), 0.3), HoldResidual()
)
