"""Real pipelines of diffusers with tiny random transformers, and what they draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatchEuler
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from tests.models import TinyTransformer, tiny_inputs
from tests.zoo import ZOO, make
from tests.zoo.models import TinyModel

NO_TEXT = {"tokenizer": None, "text_encoder": None, "vae": None}
MORE_TEXT = {"tokenizer_2": None, "text_encoder_2": None}


def _packed_flux() -> nn.Module:
    """As the zoo's, with 16 latent channels in patches of 2 x 2, as pipelines pack."""
    return diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )


FLUX = TinyModel("flux", _packed_flux, (1, 16, 64), lambda generator: {})


def _shallow(name: str, layers: int = 1) -> TinyModel:
    """A model of the zoo with fewer layers."""
    tiny = ZOO[name]

    def build() -> nn.Module:
        whole: Any = tiny.build()
        return type(whole).from_config({**whole.config, "num_layers": layers})

    return replace(tiny, build=build)


WAN, COGVIDEOX = _shallow("wan"), _shallow("cogvideox")
SD3 = _shallow("sd3", layers=2)


def flux() -> Any:
    """A `FluxPipeline`."""
    return _quiet(
        diffusers.FluxPipeline(
            **NO_TEXT,
            **MORE_TEXT,
            transformer=make(FLUX),
            scheduler=FlowMatchEuler(shift=3.0),
        )
    )


def sd3() -> Any:
    """A `StableDiffusion3Pipeline`, which has no `current_timestep`."""
    return _quiet(
        diffusers.StableDiffusion3Pipeline(
            **NO_TEXT,
            **MORE_TEXT,
            tokenizer_3=None,
            text_encoder_3=None,
            transformer=make(SD3),
            scheduler=FlowMatchEuler(shift=3.0),
        )
    )


def cogvideox() -> Any:
    """A `CogVideoXPipeline`, whose scheduler does not count its steps."""
    return _quiet(
        diffusers.CogVideoXPipeline(
            **NO_TEXT,
            transformer=make(COGVIDEOX),
            scheduler=diffusers.CogVideoXDDIMScheduler(),
        )
    )


def wan(experts: int = 2) -> Any:
    """A `WanPipeline` with one transformer, or with one for each part of the loop."""
    second = make(WAN, seed=1) if experts == 2 else None
    return _quiet(
        diffusers.WanPipeline(
            **NO_TEXT,
            transformer=make(WAN),
            transformer_2=second,
            scheduler=FlowMatchEuler(shift=3.0),
            boundary_ratio=0.8 if second is not None else None,
        )
    )


class Transformer(CacheMixin, TinyTransformer):  # type: ignore[misc]
    """The smallest that takes diffusers' caches, which is captured at once."""


class TinyPipe(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """The smallest pipeline: a loop, in two parts if there are two transformers."""

    _optional_components = ("transformer_2",)

    def __init__(
        self, transformer: Any, scheduler: Any, transformer_2: Any = None
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, transformer_2=transformer_2
        )

    @torch.no_grad()
    def __call__(self, num_inference_steps: int, seed: int = 0) -> Tensor:
        """f32[2, 3, 8]."""
        inputs = tiny_inputs(seed=seed)
        latents = inputs.pop("hidden_states")
        self.scheduler.set_timesteps(num_inference_steps)
        for index, timestep in enumerate(self.scheduler.timesteps):
            second = self.transformer_2 is not None and 2 * index >= num_inference_steps
            module = self.transformer_2 if second else self.transformer
            inputs["timestep"] = timestep.expand(2)
            (noise,) = module(hidden_states=latents, **inputs)
            (latents,) = self.scheduler.step(
                noise, timestep, latents, return_dict=False
            )
        self.maybe_free_model_hooks()
        return latents


def tiny_pipe(experts: int = 1) -> Any:
    """A `TinyPipe`."""
    torch.manual_seed(0)
    modules = [Transformer().eval() for _ in range(2)]
    return TinyPipe(modules[0], FlowMatchEuler(), modules[1] if experts == 2 else None)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(pipe: Any, steps: int = 6, seed: int = 0, **kwargs: Any) -> Tensor:
    """The latents that a pipeline of this module ends with."""
    if isinstance(pipe, TinyPipe):
        return pipe(steps, seed)
    randn = partial(_noise, seed=seed)
    inputs = {"num_inference_steps": steps, "output_type": "latent", **kwargs}
    name = type(pipe).__name__
    if name.startswith("Flux"):
        inputs |= {
            "prompt_embeds": randn(1, 6, 8),
            "pooled_prompt_embeds": randn(1, 8),
            "height": 64,
            "width": 64,
            "generator": torch.Generator().manual_seed(seed),
        }
    elif name.startswith("StableDiffusion3"):
        inputs |= {
            "prompt_embeds": randn(1, 6, 8),
            "negative_prompt_embeds": randn(1, 6, 8),
            "pooled_prompt_embeds": randn(1, 8),
            "negative_pooled_prompt_embeds": randn(1, 8),
            "height": 64,
            "width": 64,
            "latents": randn(1, 4, 8, 8),
        }
    elif name.startswith("CogVideoX"):
        inputs |= {
            "prompt_embeds": randn(1, 8, 8),
            "negative_prompt_embeds": randn(1, 8, 8),
            "height": 64,
            "width": 64,
            "num_frames": 5,
            "latents": randn(1, 2, 4, 8, 8),
        }
    else:
        inputs |= {
            "prompt_embeds": randn(1, 8, 16),
            "negative_prompt_embeds": randn(1, 8, 16),
            "height": 64,
            "width": 64,
            "num_frames": 5,
            "guidance_scale": 3.0,
            "latents": randn(1, 4, 2, 8, 8),
        }
    output = pipe(**inputs)
    return output.images if hasattr(output, "images") else output.frames


def redraw(pipe: Any, steps: int = 6, seed: int = 0, **kwargs: Any) -> Tensor:
    """The latents of a `FluxImg2ImgPipeline` that goes over half of the loop."""
    image = _noise(1, 16, 8, 8, seed=seed + 7)
    return draw(pipe, steps, seed, image=image, strength=0.5, **kwargs)


@dataclass(frozen=True)
class Kind:
    """A pipeline and the names of its transformers."""

    make: Callable[[], Any]
    transformers: tuple[str, ...] = ("transformer",)


PIPES = {
    "flux": Kind(flux),
    "sd3": Kind(sd3),
    "cogvideox": Kind(cogvideox),
    "wan": Kind(wan, ("transformer", "transformer_2")),
}
