"""Predictors: what stands in for a region when it is not computed."""

from graphcache.policy.predictors.base import Operands, Plain, Predictor, Tensors
from graphcache.policy.predictors.half import ConditionalHalf
from graphcache.policy.predictors.hold import HoldOutput, HoldResidual, Zeros
from graphcache.policy.predictors.linear import LinearExtrapolation, LinearResidual
from graphcache.policy.predictors.spectral import SpectralGuidance, split_spectrum
from graphcache.policy.predictors.taylor import Taylor, TaylorResidual

__all__ = [
    "ConditionalHalf",
    "HoldOutput",
    "HoldResidual",
    "LinearExtrapolation",
    "LinearResidual",
    "Operands",
    "Plain",
    "Predictor",
    "SpectralGuidance",
    "Taylor",
    "TaylorResidual",
    "Tensors",
    "Zeros",
    "split_spectrum",
]
