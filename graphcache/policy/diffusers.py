"""diffusers' cache configs as policies.

The configs are read by name, so that nothing here imports diffusers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphcache.errors import PolicyError
from graphcache.policy.decisions import Interval
from graphcache.policy.policy import Policy
from graphcache.policy.regions import Attention
from graphcache.program import Region

TimestepCallback = Callable[[], Any]


@dataclass(frozen=True)
class Configuration:
    """What `compile` was asked for, normalised.

    Attributes:
        policies: In order of precedence: a region belongs to the first that takes it.
        timestep_callback: Returns the current timestep, or None.
    """

    policies: tuple[Policy, ...]
    timestep_callback: TimestepCallback | None = None


def configuration(config: object) -> Configuration:
    """Read a `Policy`, a sequence of them, or a diffusers cache config.

    Raises:
        PolicyError: If `config` is none of these, or malformed.
    """
    if isinstance(config, Policy):
        return Configuration((config,))
    if isinstance(config, (list, tuple)):
        return _merge([configuration(item) for item in config])
    reader = _READERS.get(type(config).__name__)
    if reader is None or not type(config).__module__.startswith("diffusers."):
        known = ", ".join(_READERS)
        raise PolicyError(
            f"{type(config).__name__} is no cache config: give a graphcache.Policy, a "
            f"list of them, or one of diffusers' configs ({known})"
        )
    return reader(config)


def _merge(parts: list[Configuration]) -> Configuration:
    policies = tuple(policy for part in parts for policy in part.policies)
    if not policies:
        raise PolicyError("the list of policies is empty")
    names = [policy.name for policy in policies]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PolicyError(f"several policies are named {', '.join(repeated)}")
    callbacks = [part.timestep_callback for part in parts]
    return Configuration(policies, next(filter(None, callbacks), None))


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
            stacklevel=4,
        )
        intervals["spatial"] = 2
    policies = tuple(
        Policy(
            kind,
            Attention(
                ("cross",) if kind == "cross" else ("self", "joint"),
                include=tuple(getattr(config, f"{kind}_attention_block_identifiers")),
                is_cross=_declared_cross,
            ),
            Interval(every, getattr(config, f"{kind}_attention_timestep_skip_range")),
            required=False,
        )
        for kind, every in intervals.items()
        if every is not None
    )
    return Configuration(policies, config.current_timestep_callback)


def _declared_cross(region: Region) -> bool:
    """Cross-attention as diffusers tells it: by the module's own attribute."""
    return region.declares_cross


_READERS: dict[str, Callable[[Any], Configuration]] = {
    "PyramidAttentionBroadcastConfig": _pyramid_attention_broadcast,
}
