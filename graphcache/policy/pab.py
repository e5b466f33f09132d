"""Pyramid Attention Broadcast.

Zhao et al., "Real-Time Video Generation with Pyramid Attention Broadcast", arXiv
2408.12588: attention outputs change little in the middle of the denoising loop, most
in spatial, less in temporal, least in cross-attention, so each kind is recomputed at
its own interval and its output held between.
"""

from __future__ import annotations

from graphcache.errors import PolicyError
from graphcache.policy.decisions import Interval
from graphcache.policy.policy import Policy
from graphcache.policy.regions import TEMPORAL, Attention

SELF = ("self", "joint")


def pyramid_attention_broadcast(
    spatial: int | None = None,
    temporal: int | None = None,
    cross: int | None = None,
    *,
    window: tuple[float, float] | None = (100, 800),
) -> tuple[Policy, ...]:
    """Policies that hold attention outputs, one per kind of attention.

    Args:
        spatial: Compute self- and joint attention every n-th step; None leaves it.
        temporal: The same for attention over frames, by module path.
        cross: The same for cross-attention, by dataflow.
        window: Reuse only while ``low < timestep < high``, in the scheduler's units;
            None reuses at any timestep.

    Raises:
        PolicyError: If no interval is given, one is not positive, or the window is
            not ordered.
    """
    exclude = () if temporal is None else (TEMPORAL,)
    selectors = {
        "spatial": (spatial, Attention(SELF, exclude=exclude)),
        "temporal": (temporal, Attention(SELF, include=(TEMPORAL,))),
        "cross": (cross, Attention(("cross",))),
    }
    policies = tuple(
        Policy(name, regions, Interval(every, window))
        for name, (every, regions) in selectors.items()
        if every is not None
    )
    if not policies:
        raise PolicyError("give at least one of spatial=, temporal= and cross=")
    return policies
