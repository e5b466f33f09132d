"""Policies: which regions are cached, when, and what stands in for them."""

from graphcache.policy.configs import (
    config_from_dict,
    config_to_dict,
    configuration,
    load_config,
    save_config,
)
from graphcache.policy.dbcache import dbcache
from graphcache.policy.decisions import (
    Always,
    Decision,
    Ends,
    Interval,
    Mask,
    Never,
    Static,
    Step,
    Warmed,
)
from graphcache.policy.diffusers import Configuration
from graphcache.policy.fastercache import GuidanceConfig, fastercache
from graphcache.policy.first_block_cache import first_block_cache
from graphcache.policy.fora import fora
from graphcache.policy.indicators import (
    AccumulatedChange,
    Indicator,
    RelativeChange,
    SpectralChange,
)
from graphcache.policy.magcache import magcache
from graphcache.policy.pab import pyramid_attention_broadcast
from graphcache.policy.policy import Policy, never_reuse
from graphcache.policy.predictors import (
    HoldOutput,
    HoldResidual,
    LinearExtrapolation,
    LinearResidual,
    Predictor,
    SpectralGuidance,
    Taylor,
    TaylorResidual,
    Zeros,
)
from graphcache.policy.probes import (
    HeadStream,
    Latents,
    ModulatedInput,
    Probe,
    TimestepEmbedding,
)
from graphcache.policy.regions import (
    AnyOf,
    Attention,
    Blocks,
    EachBlock,
    FeedForward,
    LastOutput,
    Model,
    Modules,
    Selector,
)
from graphcache.policy.scalars import Scalar
from graphcache.policy.seacache import seacache
from graphcache.policy.smoothcache import SmoothCacheSchedule, smoothcache
from graphcache.policy.step_mask import step_mask
from graphcache.policy.taylorseer import taylorseer
from graphcache.policy.teacache import teacache
from graphcache.policy.tgate import tgate
from graphcache.policy.threshold import Threshold

__all__ = [
    "AccumulatedChange",
    "Always",
    "AnyOf",
    "Attention",
    "Blocks",
    "Configuration",
    "Decision",
    "EachBlock",
    "Ends",
    "FeedForward",
    "GuidanceConfig",
    "HeadStream",
    "HoldOutput",
    "HoldResidual",
    "Indicator",
    "Interval",
    "LastOutput",
    "Latents",
    "LinearExtrapolation",
    "LinearResidual",
    "Mask",
    "Model",
    "ModulatedInput",
    "Modules",
    "Never",
    "Policy",
    "Predictor",
    "Probe",
    "RelativeChange",
    "Scalar",
    "Selector",
    "SmoothCacheSchedule",
    "SpectralChange",
    "SpectralGuidance",
    "Static",
    "Step",
    "Taylor",
    "TaylorResidual",
    "Threshold",
    "TimestepEmbedding",
    "Warmed",
    "Zeros",
    "config_from_dict",
    "config_to_dict",
    "configuration",
    "dbcache",
    "fastercache",
    "first_block_cache",
    "fora",
    "load_config",
    "magcache",
    "never_reuse",
    "pyramid_attention_broadcast",
    "save_config",
    "seacache",
    "smoothcache",
    "step_mask",
    "taylorseer",
    "teacache",
    "tgate",
]
