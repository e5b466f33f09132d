"""Indicators: what a dynamic decision measures."""

from graphcache.policy.indicators.accumulated import AccumulatedChange
from graphcache.policy.indicators.base import Indicator, Tensors
from graphcache.policy.indicators.relative import RelativeChange
from graphcache.policy.indicators.spectral import SpectralChange

__all__ = [
    "AccumulatedChange",
    "Indicator",
    "RelativeChange",
    "SpectralChange",
    "Tensors",
]
