"""FORA: fast-forward caching.

Selvaraju et al., "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration",
arXiv 2407.01425: every attention and every feed-forward is computed each n-th step, and
its output held between.
"""

from __future__ import annotations

from graphcache.policy.decisions import Interval
from graphcache.policy.policy import Policy
from graphcache.policy.regions import AnyOf, Attention, FeedForward


def fora(interval: int) -> Policy:
    """A policy that holds the outputs of attention and feed-forward.

    Args:
        interval: Compute every n-th step; 1 never reuses.

    Raises:
        PolicyError: If the interval is not a positive integer.
    """
    return Policy("fora", AnyOf((Attention(), FeedForward())), Interval(interval))
