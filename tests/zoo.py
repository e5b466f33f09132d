"""Tiny random transformers of diffusers, called as their pipelines call them.

The weights are seeded noise, so that no layer that diffusers initialises to zero hides
an attention from the output. `denoise` runs a real scheduler, so that latents move as
a sampler's do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

Inputs = dict[str, Any]


@dataclass
class Clock:
    """What a pipeline's ``current_timestep`` would be."""

    now: float | None = None

    def __call__(self) -> float | None:
        """The current timestep, in the scheduler's units."""
        return self.now


@dataclass(frozen=True)
class TinyModel:
    """One transformer and how its pipeline calls it.

    Attributes:
        name: The model's name.
        build: Makes the module; `make` seeds it.
        latents: Shape of the latents.
        inputs: Forward arguments besides latents and timestep, from a generator.
        scheduler: Makes the scheduler of the pipeline.
        timestep: The timestep argument from the scheduler's timestep and the batch.
        current: The pipeline's ``current_timestep`` from the scheduler's timestep.
        kinds: Attention kinds the model has: spatial, temporal, cross.
        learned_sigma: Whether half of the output channels are a variance.
    """

    name: str
    build: Callable[[], nn.Module]
    latents: tuple[int, ...]
    inputs: Callable[[torch.Generator], Inputs]
    scheduler: Callable[[], Any] = FlowMatchEulerDiscreteScheduler
    timestep: Callable[[Tensor, int], Tensor] = lambda t, batch: t.expand(batch)
    current: Callable[[Tensor], float] = float
    kinds: tuple[str, ...] = ("spatial",)
    learned_sigma: bool = False


def make(tiny: TinyModel, seed: int = 0) -> nn.Module:
    """The seeded module in eval mode, with noise for every weight."""
    torch.manual_seed(seed)
    module = tiny.build().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            scale = 0.3 if weight.ndim < 2 else (2.0 / weight.shape[-1]) ** 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return module


def first_inputs(tiny: TinyModel, timestep: float = 500.0, seed: int = 1) -> Inputs:
    """The arguments of one call."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(tiny.latents, generator=generator)
    time = tiny.timestep(torch.tensor(timestep), tiny.latents[0])
    return {"hidden_states": latents, "timestep": time, **tiny.inputs(generator)}


@dataclass
class Loop:
    """A denoising loop in progress: one stream of calls."""

    tiny: TinyModel
    steps: int
    seed: int
    outputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = self.tiny.scheduler()
        self.scheduler.set_timesteps(self.steps)
        self.inputs = first_inputs(self.tiny, seed=self.seed)
        self.latents = self.inputs.pop("hidden_states")
        # Ancestral samplers draw noise at every step.
        self.noise = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            self.noise = {"generator": torch.Generator().manual_seed(self.seed)}

    def step(self, module: nn.Module, t: Tensor) -> None:
        """Call the module once and let the scheduler move the latents."""
        latents = self.latents
        if hasattr(self.scheduler, "scale_model_input"):
            latents = self.scheduler.scale_model_input(latents, t)
        inputs = {**self.inputs, "hidden_states": latents}
        inputs["timestep"] = self.tiny.timestep(t, latents.shape[0])
        (output,) = module(**inputs, return_dict=False)
        self.outputs.append(output.clone())
        if self.tiny.learned_sigma:
            output = output.chunk(2, dim=1)[0]
        self.latents = self.scheduler.step(
            output, t, self.latents, return_dict=False, **self.noise
        )[0]


def denoise(
    module: nn.Module,
    tiny: TinyModel,
    steps: int,
    *,
    clock: Clock | None = None,
    seed: int = 1,
    context: str | None = "cond_uncond",
) -> list[Tensor]:
    """One generation; the module's output at every step."""
    loop = Loop(tiny, steps, seed)
    with torch.no_grad(), finished(module):
        for t in loop.scheduler.timesteps:
            set_clock(clock, tiny, t)
            with in_context(module, context):
                loop.step(module, t)
    return loop.outputs


def denoise_in_turn(
    module: nn.Module,
    tiny: TinyModel,
    steps: int,
    *,
    clock: Clock | None = None,
    seeds: tuple[int, int] = (1, 2),
    contexts: tuple[str | None, str | None] = ("cond", "uncond"),
) -> tuple[list[Tensor], list[Tensor]]:
    """Sequential guidance: two streams, called one after the other at every step."""
    loops = [Loop(tiny, steps, seed) for seed in seeds]
    with torch.no_grad(), finished(module):
        for t in loops[0].scheduler.timesteps:
            set_clock(clock, tiny, t)
            for loop, context in zip(loops, contexts, strict=True):
                with in_context(module, context):
                    loop.step(module, t)
    return loops[0].outputs, loops[1].outputs


def set_clock(clock: Clock | None, tiny: TinyModel, t: Tensor) -> None:
    """Tell the clock the time, as a pipeline does before it calls."""
    if clock is not None:
        clock.now = tiny.current(t)


def in_context(module: nn.Module, name: str | None) -> AbstractContextManager[None]:
    """The module's cache context, if it has one and a name is given."""
    if name is None or not hasattr(module, "cache_context"):
        return nullcontext()
    context: AbstractContextManager[None] = module.cache_context(name)
    return context


@contextmanager
def finished(module: nn.Module) -> Iterator[None]:
    """Reset the caches at the end of a generation, as pipelines do."""
    yield
    if hasattr(module, "_reset_stateful_cache"):
        module._reset_stateful_cache()


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def _cogvideox(rotary: bool) -> Callable[[], nn.Module]:
    return lambda: diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16 if rotary else 8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=8,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=rotary,
    )


def _rotary(generator: torch.Generator) -> Inputs:
    angles = _randn(generator, 32, 16)
    return {
        "encoder_hidden_states": _randn(generator, 2, 8, 8),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def _latte() -> nn.Module:
    return diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=8,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )


def _pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=8,
        use_additional_conditions=False,
    )


def _flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def _flux_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": _randn(generator, 1, 6, 8),
        "pooled_projections": _randn(generator, 1, 8),
        "guidance": torch.tensor([3.5]),
        "txt_ids": torch.zeros(6, 3),
        "img_ids": torch.cartesian_prod(*[torch.arange(n) for n in (1, 4, 4)]).float(),
        "joint_attention_kwargs": None,
    }


def _hunyuan() -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )


def _hunyuan_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": _randn(generator, 1, 8, 16),
        "encoder_attention_mask": torch.tensor([[1.0] * 6 + [0.0] * 2]),
        "pooled_projections": _randn(generator, 1, 8),
        "guidance": torch.tensor([6000.0]),
    }


def _ltx() -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )


def _ltx_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": _randn(generator, 2, 8, 16),
        "encoder_attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]).bool(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "rope_interpolation_scale": (1.0, 32.0, 32.0),
    }


def _mochi() -> nn.Module:
    return diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=8,
    )


def _mochi_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": _randn(generator, 2, 8, 16),
        "encoder_attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]).bool(),
    }


def _allegro() -> nn.Module:
    return diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=2,
        caption_channels=16,
    )


def _allegro_inputs(generator: torch.Generator) -> Inputs:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    *frequencies, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(
        embed_dim=12,
        crops_coords=((0, 0), (4, 4)),
        grid_size=(4, 4),
        temporal_size=2,
        interpolation_scale=(2.2, 2.0, 2.0),
    )
    grids = torch.cartesian_prod(*[grid.long() for grid in (grid_t, grid_h, grid_w)])
    positions = grids.reshape(-1, 3).transpose(0, 1).reshape(3, 1, -1).contiguous()
    return {
        "encoder_hidden_states": _randn(generator, 2, 8, 16),
        "encoder_attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
        "image_rotary_emb": (tuple(frequencies), tuple(positions)),
    }


def _wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def _mochi_scheduler() -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    original = scheduler.set_timesteps

    def set_timesteps(steps: int) -> None:
        original(sigmas=torch.linspace(1.0, 0.025, steps).tolist())

    scheduler.set_timesteps = set_timesteps
    return scheduler


MODELS = (
    TinyModel(
        "cogvideox",
        _cogvideox(rotary=False),
        (2, 2, 4, 8, 8),
        lambda g: {"encoder_hidden_states": _randn(g, 2, 8, 8)},
        diffusers.CogVideoXDDIMScheduler,
    ),
    TinyModel(
        "cogvideox_rotary",
        _cogvideox(rotary=True),
        (2, 2, 4, 8, 8),
        _rotary,
        lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    ),
    TinyModel(
        "latte",
        _latte,
        (2, 4, 2, 8, 8),
        lambda g: {
            "encoder_hidden_states": _randn(g, 2, 5, 8),
            "enable_temporal_attentions": True,
        },
        lambda: diffusers.DDIMScheduler(clip_sample=False),
        kinds=("spatial", "temporal", "cross"),
        learned_sigma=True,
    ),
    TinyModel(
        "pixart",
        _pixart,
        (2, 4, 8, 8),
        lambda g: {
            "encoder_hidden_states": _randn(g, 2, 6, 8),
            "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        diffusers.DPMSolverMultistepScheduler,
        kinds=("spatial", "cross"),
        learned_sigma=True,
    ),
    TinyModel(
        "flux",
        _flux,
        (1, 16, 4),
        _flux_inputs,
        timestep=lambda t, batch: t.expand(batch) / 1000,
    ),
    TinyModel("hunyuan_video", _hunyuan, (1, 4, 2, 4, 4), _hunyuan_inputs),
    TinyModel("ltx", _ltx, (2, 32, 8), _ltx_inputs),
    TinyModel(
        "mochi",
        _mochi,
        (2, 4, 2, 8, 8),
        _mochi_inputs,
        _mochi_scheduler,
        current=lambda t: float(1000 - t),
    ),
    TinyModel(
        "allegro",
        _allegro,
        (2, 4, 2, 8, 8),
        _allegro_inputs,
        diffusers.EulerAncestralDiscreteScheduler,
        kinds=("spatial", "cross"),
    ),
    TinyModel(
        "wan",
        _wan,
        (1, 4, 2, 8, 8),
        lambda g: {"encoder_hidden_states": _randn(g, 1, 8, 16)},
        diffusers.UniPCMultistepScheduler,
        kinds=("spatial", "cross"),
    ),
)
ZOO = {tiny.name: tiny for tiny in MODELS}
