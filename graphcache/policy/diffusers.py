"""diffusers' cache configs as policies.

The configs are read by name, so that nothing here imports diffusers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphcache.errors import PolicyError
from graphcache.policy.decisions import Interval, Step
from graphcache.policy.fastercache import GuidanceConfig, high_weight, low_weight
from graphcache.policy.first_block_cache import first_block_cache
from graphcache.policy.magcache import magcache
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import LinearExtrapolation, Zeros
from graphcache.policy.regions import Attention, Modules, declares_cross
from graphcache.policy.scalars import Scalar
from graphcache.policy.seacache import seacache
from graphcache.policy.taylorseer import taylorseer

TimestepCallback = Callable[[], Any]

ATTENTION_PATTERNS = (
    "^blocks.*attn",
    "^transformer_blocks.*attn",
    "^single_transformer_blocks.*attn",
    "^temporal_transformer_blocks.*attn",
)
"""Paths that FasterCache and TaylorSeer look at in diffusers."""


@dataclass(frozen=True)
class Configuration:
    """What `compile` was asked for, normalised.

    Attributes:
        policies: In order of precedence: a region belongs to the first that takes it.
        timestep_callback: Returns the current timestep, or None.
        guidance: How the unconditional half of the batch is predicted; None if it is
            always run.
    """

    policies: tuple[Policy, ...]
    timestep_callback: TimestepCallback | None = None
    guidance: GuidanceConfig | None = None


def from_diffusers(config: object) -> Configuration | None:
    """The policies of one of diffusers' configs; None for anything else.

    Raises:
        PolicyError: If it cannot be had.
    """
    reader = _READERS.get(type(config).__name__)
    if reader is None or not type(config).__module__.startswith("diffusers."):
        return None
    return reader(config)


def _pyramid_attention_broadcast(config: Any) -> Configuration:
    """As diffusers matches modules: spatial first, then temporal, then cross."""
    intervals = {
        kind: getattr(config, f"{kind}_attention_block_skip_range")
        for kind in ("spatial", "temporal", "cross")
    }
    if all(every is None for every in intervals.values()):
        warnings.warn(
            "no skip range is set; using spatial_attention_block_skip_range=2, as "
            "diffusers does",
            stacklevel=5,
        )
        intervals["spatial"] = 2
    policies = tuple(
        Policy(
            kind,
            Attention(
                ("cross",) if kind == "cross" else ("self", "joint"),
                include=tuple(getattr(config, f"{kind}_attention_block_identifiers")),
                is_cross=declares_cross,
            ),
            Interval(every, getattr(config, f"{kind}_attention_timestep_skip_range")),
            required=False,
        )
        for kind, every in intervals.items()
        if every is not None
    )
    return Configuration(policies, config.current_timestep_callback)


def _faster_cache(config: Any) -> Configuration:
    """Attention that diffusers looks at, narrowed by the config's identifiers."""
    given = config.attention_weight_callback
    weight = 0.5 if given is None else _called("attention_weight", given)
    policies = []
    for kind in ("spatial", "temporal"):
        every = getattr(config, f"{kind}_attention_block_skip_range")
        window = getattr(config, f"{kind}_attention_timestep_skip_range")
        if every is None or window is None:
            continue
        regions = Attention(
            ("self", "joint"),
            include=tuple(getattr(config, f"{kind}_attention_block_identifiers")),
            is_cross=declares_cross,
            within=ATTENTION_PATTERNS,
        )
        predictor = LinearExtrapolation(weight)
        decision = Interval(every, window)
        policies.append(Policy(kind, regions, decision, predictor, required=False))
    guidance = None if config.is_guidance_distilled else _guidance(config)
    return Configuration(tuple(policies), config.current_timestep_callback, guidance)


def _guidance(config: Any) -> GuidanceConfig:
    low, high = (
        make(
            getattr(config, f"alpha_{band}_frequency"),
            getattr(config, f"{band}_frequency_weight_update_timestep_range"),
        )
        if getattr(config, f"{band}_frequency_weight_callback") is None
        else _called(
            f"{band}_weight", getattr(config, f"{band}_frequency_weight_callback")
        )
        for band, make in (("low", low_weight), ("high", high_weight))
    )
    return GuidanceConfig(
        config.unconditional_batch_skip_range,
        config.unconditional_batch_timestep_skip_range,
        config.tensor_format,
        low,
        high,
        tuple(config._unconditional_conditional_input_kwargs_identifiers),
    )


@dataclass(frozen=True)
class _Called:
    """A number of the step that a callback of diffusers gives.

    The hooks call it with the module; what is compiled has none to give.
    """

    name: str
    callback: Callable[[Any], Any]

    def __call__(self, step: Step) -> float:
        try:
            return float(self.callback(None))
        except (AttributeError, TypeError, ValueError) as error:
            raise PolicyError(
                f"the callback of {self.name} fails ({error}). It is called with None "
                "in place of the module, and has to return a number."
            ) from error


def _called(name: str, callback: Callable[[Any], Any]) -> Scalar:
    return Scalar(name, _Called(name, callback))


def _first_block_cache(config: Any) -> Configuration:
    return Configuration((first_block_cache(config.threshold),))


def _taylorseer(config: Any) -> Configuration:
    """Modules by their whole paths; those whose output is zero come first."""
    options = {
        "before": config.disable_cache_before_step,
        "after": config.disable_cache_after_step,
        "order": config.max_order,
        "dtype": config.taylor_factors_dtype,
    }
    if config.use_lite_mode:
        policy = taylorseer(config.cache_interval, lite=True, **options)
        return Configuration((policy,))
    patterns = tuple(config.cache_identifiers or ATTENTION_PATTERNS)
    policy = taylorseer(config.cache_interval, regions=Modules(patterns), **options)
    skipped = tuple(config.skip_predict_identifiers or ())
    if not skipped:
        return Configuration((policy,))
    zeros = Policy("skipped", Modules(skipped), policy.decision, Zeros())
    return Configuration((zeros, policy))


def _mag_cache(config: Any) -> Configuration:
    if config.calibrate:
        raise PolicyError(
            "MagCacheConfig(calibrate=True) measures ratios and caches nothing: "
            "graphcache.calibrate measures them, for MagCacheConfig(mag_ratios=...)"
        )
    policy = magcache(
        config.mag_ratios,
        steps=config.num_inference_steps,
        threshold=config.threshold,
        max_skip=config.max_skip_steps,
        retention=config.retention_ratio,
    )
    return Configuration((policy,))


def _sea_cache(config: Any) -> Configuration:
    if config.raw_vision_callback is not None:
        raise PolicyError(
            "raw_vision_callback is Python that runs at every step and cannot be in a "
            "graph: use graphcache.seacache(probe=...), which says what is observed"
        )
    policy = seacache(
        config.threshold,
        order=config.residual_order,
        first=config.retention_steps,
        last=config.cache_end_steps,
        max_run=config.max_consecutive_cached or None,
        power=config.power_exp,
    )
    return Configuration((policy,))


_READERS: dict[str, Callable[[Any], Configuration]] = {
    "PyramidAttentionBroadcastConfig": _pyramid_attention_broadcast,
    "FasterCacheConfig": _faster_cache,
    "FirstBlockCacheConfig": _first_block_cache,
    "TaylorSeerCacheConfig": _taylorseer,
    "MagCacheConfig": _mag_cache,
    "SeaCacheConfig": _sea_cache,
}
CONFIG_NAMES = tuple(_READERS)
"""The classes that are read."""
