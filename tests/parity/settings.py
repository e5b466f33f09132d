"""Settings at which each method reuses some steps and computes others.

They are for the random weights of the zoo, over 12 and 28 steps with seeds 1 and 2. No
change comes within 0.3 percent of a threshold there, so that rounding decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor

from tests.parity.hooks import Caching, caching, calibrated_ratios
from tests.zoo import ZOO

# With one head block and no tail. The hooks of First Block Cache run on these.
FIRST_BLOCK = {
    "cogvideox": 0.93,
    "cogvideox_rotary": 0.96,
    "hunyuan_video": 0.70,
    "ltx": 0.42,
    "mochi": 0.84,
    "wan": 0.76,
    "pixart": 0.90,
    "flux": 0.75,
    "wan_vace": 0.86,
    "flux_controlnet": 0.72,
    "flux_controlnet_moving": 0.62,
    "qwenimage": 0.90,
    "cogview4": 0.74,
}
# On these the hooks fail: two lists of blocks in turn, unregistered blocks, streams
# joined midway, a stream that ends.
NO_FIRST_BLOCK: dict[str, type[Exception]] = {
    "latte": RuntimeError,
    "allegro": ValueError,
    "flux2": TypeError,
    "sd3": TypeError,
}
# Head and tail blocks and the threshold, of DBCache.
DB_CACHE = {
    **{name: (1, 0, threshold) for name, threshold in FIRST_BLOCK.items()},
    "latte": (1, 0, 0.72),
    "allegro": (1, 0, 0.74),
    "hunyuan_video": (1, 1, 0.69),
    "flux": (2, 1, 0.75),
    "wan_vace": (1, 1, 0.75),
    "flux_controlnet": (2, 1, 0.72),
    "flux_controlnet_moving": (2, 1, 0.60),
    "flux2": (1, 1, 1.12),
    "qwenimage": (1, 1, 0.88),
    "cogview4": (1, 1, 0.58),
    "sd3": (1, 0, 0.64),
}
# Of TeaCache without rescaling. The ends of Latte's trunk differ in shape.
TEA = {
    "cogvideox": 1.16,
    "cogvideox_rotary": 0.98,
    "hunyuan_video": 0.88,
    "ltx": 1.29,
    "mochi": 0.75,
    "allegro": 0.96,
    "wan": 0.92,
    "pixart": 1.14,
    "flux": 0.92,
    "wan_vace": 1.21,
    "flux_controlnet": 0.92,
    "flux_controlnet_moving": 0.92,
    "flux2": 1.02,
    "qwenimage": 0.82,
    "cogview4": 0.82,
    "sd3": 0.66,
}
# Of MagCache, with ratios calibrated on the same model and number of steps.
MAG_THRESHOLD = 0.5
NO_MAG: dict[str, type[Exception]] = {"latte": RuntimeError, "allegro": ValueError}
MAG = [name for name in ZOO if name not in NO_MAG]


def _videos(_: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    return list(kwargs["hidden_states"].unbind(0))


def _images(_: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    return list(kwargs["hidden_states"].unsqueeze(2).unbind(0))


# Of SeaCache, and how it finds the latents where it has no way of its own. A sigma in
# [0, 1] is needed, as flow matching has it.
SEA: dict[str, tuple[float, Callable[..., list[Tensor]] | None]] = {
    "wan": (0.4, None),
    "wan_vace": (0.4, _videos),
    "hunyuan_video": (0.25, _videos),
    "mochi": (0.25, _videos),
    "cogview4": (0.25, _images),
}
# Attention and feed-forward, for TaylorSeer. Hooks count calls, so CogView4's one
# feed-forward for two streams has to stay out.
_LAYERS = r".*blocks\.\d+\.(attn\d?|ff|ffn|ff_context|img_mlp|txt_mlp)"
LAYERS = {name: [_LAYERS] for name in ZOO} | {"cogview4": [r".*blocks\.\d+\.attn1"]}
# Layout of the output, for FasterCache with guidance in one batch.
FASTER = {
    "cogvideox": "BFCHW",
    "cogvideox_rotary": "BFCHW",
    "latte": "BCFHW",
    "mochi": "BCFHW",
    "allegro": "BCFHW",
    "pixart": "BCHW",
}
FASTER_DISTILLED = ["flux", "hunyuan_video", "flux2", "qwenimage", "cogview4", "wan"]


def first_block(name: str) -> Caching:
    """First Block Cache at the model's threshold."""
    return caching(lambda _: FirstBlockCacheConfig(threshold=FIRST_BLOCK[name]))


def mag(name: str, steps: int, **options: Any) -> Caching:
    """MagCache with the ratios of the model's own generation."""
    ratios = calibrated_ratios(ZOO[name], steps)
    options = {"threshold": MAG_THRESHOLD, **options}
    return caching(
        lambda _: MagCacheConfig(
            mag_ratios=ratios, num_inference_steps=steps, **options
        )
    )


def sea(name: str, **options: Any) -> Caching:
    """SeaCache at the model's threshold."""
    threshold, callback = SEA[name]
    options = {"threshold": threshold, "raw_vision_callback": callback, **options}
    return caching(lambda _: SeaCacheConfig(**options))


def taylor_seer(name: str, **options: Any) -> Caching:
    """TaylorSeer on the model's attentions and feed-forwards, in float32."""
    options = {
        "cache_identifiers": LAYERS[name],
        "taylor_factors_dtype": torch.float32,
        **options,
    }
    return caching(lambda _: TaylorSeerCacheConfig(**options))


def faster(name: str, *, distilled: bool = False, **options: Any) -> Caching:
    """FasterCache on the model's layout, or without guidance in one batch."""
    layout = {} if distilled else {"tensor_format": FASTER[name]}
    options = {"is_guidance_distilled": distilled, **layout, **options}
    return caching(
        lambda clock: FasterCacheConfig(current_timestep_callback=clock, **options)
    )
