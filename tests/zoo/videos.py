"""Video transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from tests.zoo.models import Inputs, TinyModel, randn


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
    angles = randn(generator, 32, 16)
    return {
        "encoder_hidden_states": randn(generator, 2, 8, 8),
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
        "encoder_hidden_states": randn(generator, 1, 8, 16),
        "encoder_attention_mask": torch.tensor([[1.0] * 6 + [0.0] * 2]),
        "pooled_projections": randn(generator, 1, 8),
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
        "encoder_hidden_states": randn(generator, 2, 8, 16),
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
        "encoder_hidden_states": randn(generator, 2, 8, 16),
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
        "encoder_hidden_states": randn(generator, 2, 8, 16),
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


def _wan_vace() -> nn.Module:
    """Hints are added after the first two of three blocks."""
    return diffusers.WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        vace_layers=[0, 1],
        vace_in_channels=6,
    )


def _wan_vace_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": randn(generator, 1, 8, 16),
        "control_hidden_states": randn(generator, 1, 6, 2, 8, 8),
        "control_hidden_states_scale": torch.tensor([1.0, 0.7]),
    }


def _wan_scheduler() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _mochi_scheduler() -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    original = scheduler.set_timesteps

    def set_timesteps(steps: int) -> None:
        original(sigmas=torch.linspace(1.0, 0.025, steps).tolist())

    scheduler.set_timesteps = set_timesteps
    return scheduler


VIDEO_MODELS = (
    TinyModel(
        "cogvideox",
        _cogvideox(rotary=False),
        (2, 2, 4, 8, 8),
        lambda g: {"encoder_hidden_states": randn(g, 2, 8, 8)},
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
            "encoder_hidden_states": randn(g, 2, 5, 8),
            "enable_temporal_attentions": True,
        },
        lambda: diffusers.DDIMScheduler(clip_sample=False),
        kinds=("spatial", "temporal", "cross"),
        learned_sigma=True,
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
        lambda g: {"encoder_hidden_states": randn(g, 1, 8, 16)},
        _wan_scheduler,
        kinds=("spatial", "cross"),
    ),
)

MORE_VIDEO_MODELS = (
    TinyModel(
        "wan_vace",
        _wan_vace,
        (1, 4, 2, 8, 8),
        _wan_vace_inputs,
        _wan_scheduler,
        kinds=("spatial", "cross"),
    ),
)
