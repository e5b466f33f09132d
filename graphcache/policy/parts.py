"""The parts of a policy that have a name: what can be written down, and read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphcache.policy import regions as selectors
from graphcache.policy.decisions import (
    Always,
    Decision,
    Ends,
    Interval,
    Mask,
    Never,
    Warmed,
)
from graphcache.policy.fastercache import GuidanceConfig
from graphcache.policy.indicators import (
    AccumulatedChange,
    Indicator,
    RelativeChange,
    SpectralChange,
)
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
from graphcache.policy.scalars import SIGMA, STEP
from graphcache.policy.smoothcache import Layers
from graphcache.policy.tgate import BeforeGate
from graphcache.policy.threshold import Threshold

DECISIONS = (Always, Never, Warmed, Mask, Ends, Interval, BeforeGate)
ROLES: dict[Any, tuple[type, ...]] = {
    selectors.Selector: (
        selectors.Attention,
        selectors.FeedForward,
        selectors.EachBlock,
        selectors.Blocks,
        selectors.Modules,
        selectors.Model,
        selectors.LastOutput,
        selectors.AnyOf,
        Layers,
    ),
    Decision: DECISIONS,
    Predictor: (
        HoldOutput,
        HoldResidual,
        LinearExtrapolation,
        LinearResidual,
        SpectralGuidance,
        Taylor,
        TaylorResidual,
        Zeros,
    ),
    Indicator: (RelativeChange, AccumulatedChange, SpectralChange),
    Probe: (HeadStream, ModulatedInput, TimestepEmbedding, Latents),
}
"""What may stand where a field is declared as a role: the classes that fill it."""
PARTS = {part for parts in ROLES.values() for part in parts} | {
    Threshold,
    GuidanceConfig,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"declared": selectors.declares_cross}
"""Functions that a part may hold, by the name that they have as data."""
SCALARS = {"step": STEP.of, "sigma": SIGMA.of}
"""Functions of the step, by the name that they have as data."""
