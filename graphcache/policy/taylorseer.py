"""TaylorSeer.

Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with
TaylorSeers", arXiv 2503.06923, and in diffusers as ``TaylorSeerCacheConfig``: between
computed steps, outputs are forecast by their Taylor expansion instead of held.
"""

from __future__ import annotations

import torch

from graphcache.errors import PolicyError
from graphcache.policy.decisions import Warmed
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import Taylor
from graphcache.policy.regions import (
    AnyOf,
    Attention,
    FeedForward,
    LastOutput,
    Selector,
)


def taylorseer(
    interval: int = 5,
    *,
    before: int = 3,
    after: int | None = None,
    order: int = 1,
    dtype: torch.dtype | None = torch.bfloat16,
    regions: Selector | None = None,
    lite: bool = False,
) -> Policy:
    """A policy that forecasts outputs at interval.

    Args:
        interval: Compute every n-th step after the first ones.
        before: How many first steps are computed.
        after: The step from which all are computed; None for none.
        order: The highest derivative.
        dtype: What the factors are rounded to; None is the dtype of the output.
        regions: What is forecast; None is every attention and feed-forward.
        lite: Forecast the last output alone, so that nothing before it has to run.

    Raises:
        PolicyError: If a number is out of its range, or both `regions` and `lite` are
            given.
    """
    if lite and regions is not None:
        raise PolicyError("lite=True forecasts the last output: give no regions then")
    default = LastOutput() if lite else AnyOf((Attention(), FeedForward()))
    decision = Warmed(interval, before, after)
    return Policy("taylorseer", regions or default, decision, Taylor(order, dtype))
