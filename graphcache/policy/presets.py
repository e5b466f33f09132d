"""The presets by name: what ``method`` may be in a config that is data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphcache.policy.dbcache import dbcache
from graphcache.policy.fastercache import GuidanceConfig, fastercache
from graphcache.policy.first_block_cache import first_block_cache
from graphcache.policy.fora import fora
from graphcache.policy.magcache import magcache
from graphcache.policy.pab import pyramid_attention_broadcast
from graphcache.policy.policy import never_reuse
from graphcache.policy.seacache import seacache
from graphcache.policy.smoothcache import smoothcache
from graphcache.policy.step_mask import step_mask
from graphcache.policy.taylorseer import taylorseer
from graphcache.policy.teacache import teacache
from graphcache.policy.tgate import tgate

GUIDANCE = "guidance"
PRESETS: dict[str, Callable[..., Any]] = {
    "dbcache": dbcache,
    "fastercache": fastercache,
    "first_block_cache": first_block_cache,
    "fora": fora,
    GUIDANCE: GuidanceConfig,
    "magcache": magcache,
    "never_reuse": never_reuse,
    "pab": pyramid_attention_broadcast,
    "pyramid_attention_broadcast": pyramid_attention_broadcast,
    "seacache": seacache,
    "smoothcache": smoothcache,
    "step_mask": step_mask,
    "taylorseer": taylorseer,
    "teacache": teacache,
    "tgate": tgate,
}
"""By name: a function that makes policies, whose parameters are the options."""
