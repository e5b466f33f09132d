"""graphcache: a compiler for the denoising loop of diffusion transformers."""

from graphcache.api import compile, trace, variants
from graphcache.errors import (
    BackendError,
    CaptureError,
    EngineError,
    GraphCacheError,
    PolicyError,
    VerifyError,
)
from graphcache.explanation import explain
from graphcache.policy import (
    Always,
    Attention,
    HoldOutput,
    Interval,
    Policy,
    never_reuse,
    pyramid_attention_broadcast,
)

__all__ = [
    "Always",
    "Attention",
    "BackendError",
    "CaptureError",
    "EngineError",
    "GraphCacheError",
    "HoldOutput",
    "Interval",
    "Policy",
    "PolicyError",
    "VerifyError",
    "compile",
    "explain",
    "never_reuse",
    "pyramid_attention_broadcast",
    "trace",
    "variants",
]
__version__ = "0.1.0"
