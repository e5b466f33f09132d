"""cache-dit's options as a policy, where they mean the same.

The names are those of its ``DBCacheConfig`` and of its YAML files, so that a file for
cache-dit is a config here. An option that would mean something else is refused by name
with the reason; at a value that switches it off it may stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from graphcache.errors import PolicyError
from graphcache.policy.checks import check_count
from graphcache.policy.data import nearest, read_fields
from graphcache.policy.dbcache import dbcache
from graphcache.policy.decisions import Decision, Ends, Mask
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import (
    HoldResidual,
    Predictor,
    Taylor,
    TaylorResidual,
)
from graphcache.policy.regions import Blocks
from graphcache.policy.threshold import Threshold

_SECTION = "cache_config"


@dataclass(frozen=True)
class Options:
    """What is understood, with cache-dit's defaults."""

    Fn_compute_blocks: int = 8
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    num_inference_steps: int | None = None
    steps_computation_mask: tuple[int, ...] | str | None = None
    steps_computation_policy: str = "dynamic"
    enable_taylorseer: bool = False
    enable_encoder_taylorseer: bool = False
    taylorseer_cache_type: str = "residual"
    taylorseer_order: int = 1
    # Streams are told apart by what the pipeline says of them and by their order.
    enable_separate_cfg: bool = False
    cfg_compute_first: bool = False


def _off(*values: object) -> Callable[[object], bool]:
    return lambda value: value in values


_REFUSED: dict[str, tuple[Callable[[object], bool], str]] = {
    "cache_type": (
        _off("DBCache"),
        "graphcache has DBCache of cache-dit's methods; leave it out",
    ),
    "cfg_diff_compute_separate": (
        _off(True),
        "each stream of guidance decides by its own change; leave it out",
    ),
    "max_accumulated_residual_diff_threshold": (
        lambda value: isinstance(value, (int, float)) and value <= 0,
        "cache-dit adds up the changes of the whole loop, those of computed steps too; "
        "max_drift of the preset dbcache limits those of the steps reused in a row",
    ),
    "l1_hidden_states_diff_threshold": (
        _off(),
        "the change is that of the residual: give residual_diff_threshold",
    ),
    "important_condition_threshold": (
        _off(0),
        "the change is measured over all tokens",
    ),
    "downsample_factor": (_off(1), "the change is measured over all channels"),
    "force_refresh_step_hint": (
        _off(),
        "state is not reset in mid-loop: call _reset_stateful_cache() of the compiled "
        "module there",
    ),
    "enable_dmd": (_off(False), "there is no such forecast: give enable_taylorseer"),
    "enable_foca": (_off(False), "there is no such forecast: give enable_taylorseer"),
    "calibrator_config": (
        _off(),
        "write enable_taylorseer, enable_encoder_taylorseer, taylorseer_cache_type and "
        "taylorseer_order beside the other options, as in cache-dit's YAML files",
    ),
    "parallelism_config": (
        _off(),
        "several devices are for torch.distributed and diffusers",
    ),
    "attention_backend": (
        _off(),
        "call set_attention_backend of the transformer before it is compiled",
    ),
    "quantize_config": (_off(), "quantise the transformer before it is compiled"),
}
"""By name: at which values it may stand, and why at no others. None always may."""
_IDLE = frozenset(
    {
        "force_refresh_step_policy",
        "calibrator_cache_type",
        "dmd_history",
        "dmd_rank",
        "dmd_ridge",
        "dmd_svd_precision",
        "enable_encoder_dmd",
        "enable_encoder_foca",
    }
)
"""Options of what is refused, which say nothing without it."""
NAMES = (*(field.name for field in fields(Options)), *_REFUSED, *sorted(_IDLE))
"""All names that are cache-dit's."""

_RUNS = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}
"""Named masks for 28 steps: how many steps in a row are computed, and reused."""
_NAMED_STEPS = 28


def recognises(data: Mapping[str, Any]) -> bool:
    """Whether a config is written with cache-dit's names."""
    if "diffusers" in data or "policies" in data:
        return False
    if data.get("method", "dbcache") != "dbcache":
        return False
    return _SECTION in data or any(name in data for name in NAMES)


def read(data: Mapping[str, Any], where: str) -> Policy:
    """The policy of cache-dit's options.

    Args:
        data: Options by name, or a dict that has them in a section ``cache_config``.
        where: What it is, for messages.

    Raises:
        PolicyError: If an option is unknown, or means something else here.
    """
    given = {name: value for name, value in data.items() if name != "method"}
    if isinstance(section := given.pop(_SECTION, None), Mapping):
        given |= section
    elif section is not None:
        raise PolicyError(f"{where}.{_SECTION} must be a dict, not {section!r}")
    options = read_fields(_understood(given, where), Options, where, "cache-dit")
    try:
        return _policy(options)
    except PolicyError as error:
        raise PolicyError(f"{where}: {error}") from error


def _understood(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is left of the options without those that say nothing."""
    kept = {}
    for name, value in given.items():
        if name not in NAMES:
            raise PolicyError(
                f"{where}: cache-dit has no {name!r}: {nearest(name, NAMES)}"
            )
        if value is None or name in _IDLE:
            continue
        if name not in _REFUSED:
            kept[name] = value
            continue
        stands, reason = _REFUSED[name]
        if not stands(value):
            raise PolicyError(
                f"{where}: cache-dit's {name}={value!r} cannot be had: {reason}"
            )
    return kept


def _policy(options: Options) -> Policy:
    head, tail = options.Fn_compute_blocks, options.Bn_compute_blocks
    forced = _forced(options)
    if options.steps_computation_policy == "static":
        return Policy("dbcache", Blocks(head, tail), forced, _predictor(options))
    never = 0 in (options.max_cached_steps, options.max_continuous_cached_steps)
    policy = dbcache(
        head,
        tail,
        threshold=0.0 if never else _threshold(options.residual_diff_threshold),
        max_run=_limit(options.max_continuous_cached_steps),
        max_reused=_limit(options.max_cached_steps),
        predictor=_predictor(options),
    )
    found = policy.decision
    assert isinstance(found, Threshold)
    decision = Threshold(found.indicator, found.threshold, forced)
    return Policy("dbcache", policy.regions, decision, policy.predictor)


def _threshold(given: float) -> float:
    """cache-dit reuses whatever the change is from 1 on, and never at 0 or less."""
    return math.inf if given >= 1 else max(given, 0.0)


def _limit(given: int) -> int | None:
    return None if given <= 0 else given


def _forced(options: Options) -> Decision:
    """The steps that are computed without a question."""
    steps = options.num_inference_steps
    mask = _mask(options)
    if mask is not None:
        # The warm-up of cache-dit ends where its mask reuses for the first time.
        return Mask(mask, len(mask) if steps is None else steps)
    if options.steps_computation_policy == "static":
        raise PolicyError(
            "steps_computation_policy='static' needs a steps_computation_mask"
        )
    first, every = options.max_warmup_steps, options.warmup_interval
    check_count("warmup_interval", every, 1)
    if every == 1 or first <= 1:
        return Ends(max(first, 0), steps=steps)
    if steps is None:
        raise PolicyError(
            f"warmup_interval={every} needs num_inference_steps: the steps between are "
            "written as a mask"
        )
    computed = (step < first and step % every == 0 for step in range(steps))
    return Mask(tuple(map(int, computed)), steps)


def _mask(options: Options) -> tuple[int, ...] | None:
    given = options.steps_computation_mask
    if options.steps_computation_policy not in ("dynamic", "static"):
        raise PolicyError(
            "steps_computation_policy is 'dynamic' or 'static', not "
            f"{options.steps_computation_policy!r}"
        )
    if not isinstance(given, str):
        return given
    if given not in _RUNS:
        raise PolicyError(
            f"no steps_computation_mask {given!r}: {nearest(given, _RUNS)}"
        )
    if options.num_inference_steps != _NAMED_STEPS:
        raise PolicyError(
            f"steps_computation_mask={given!r} is known for num_inference_steps="
            f"{_NAMED_STEPS}, not {options.num_inference_steps}: list the steps, as "
            "cache_dit.steps_mask(total_steps=..., mask_policy=...) returns them"
        )
    computed, reused = _RUNS[given]
    runs = zip(computed, (*reused, 0), strict=False)
    steps = [[1] * ones + [0] * zeros for ones, zeros in runs]
    flat = [value for run in steps for value in run][:_NAMED_STEPS]
    # The last step is computed, whatever the runs say.
    return (*flat[:-1], 1)


def _predictor(options: Options) -> Predictor:
    if not options.enable_taylorseer:
        return HoldResidual()
    if not options.enable_encoder_taylorseer:
        raise PolicyError(
            "enable_taylorseer without enable_encoder_taylorseer forecasts the latents "
            "and holds the prompt's stream, and graphcache forecasts every stream: set "
            "enable_encoder_taylorseer to true"
        )
    kinds: dict[str, Callable[[int], Predictor]] = {
        "residual": TaylorResidual,
        "hidden_states": Taylor,
    }
    kind = kinds.get(options.taylorseer_cache_type)
    if kind is None:
        raise PolicyError(
            f"no taylorseer_cache_type {options.taylorseer_cache_type!r}: "
            f"{nearest(options.taylorseer_cache_type, kinds)}"
        )
    return kind(options.taylorseer_order)
