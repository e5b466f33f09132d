"""Image transformers."""

from __future__ import annotations

import math
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor, nn

from tests.zoo.models import Inputs, TinyModel, randn


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
        "encoder_hidden_states": randn(generator, 1, 6, 8),
        "pooled_projections": randn(generator, 1, 8),
        "guidance": torch.tensor([3.5]),
        "txt_ids": torch.zeros(6, 3),
        "img_ids": torch.cartesian_prod(*[torch.arange(n) for n in (1, 4, 4)]).float(),
        "joint_attention_kwargs": None,
    }


def _controlled_inputs(generator: torch.Generator) -> Inputs:
    """What a ControlNet adds after every block of both kinds."""
    inputs = _flux_inputs(generator)
    for name in CONTROLS:
        inputs[name] = [0.3 * randn(generator, 1, 16, 32) for _ in range(2)]
    return inputs


CONTROLS = ("controlnet_block_samples", "controlnet_single_block_samples")


def _moving_controls(inputs: Inputs, step: int) -> Inputs:
    """The controls at a step, as a ControlNet that sees the latents gives them."""
    scale = math.cos(0.2 * step)
    moved = {name: [scale * control for control in inputs[name]] for name in CONTROLS}
    return {**inputs, **moved}


def _flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _flux2_inputs(generator: torch.Generator) -> Inputs:
    positions = torch.cartesian_prod(*[torch.arange(n) for n in (1, 4, 4, 1)])
    words = torch.cartesian_prod(*[torch.arange(n) for n in (1, 1, 1, 6)])
    return {
        "encoder_hidden_states": randn(generator, 1, 6, 8),
        "guidance": torch.tensor([4.0]),
        "txt_ids": words.float(),
        "img_ids": positions.float(),
        "joint_attention_kwargs": None,
    }


def _qwenimage() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )


def _qwenimage_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": randn(generator, 1, 7, 16),
        "encoder_hidden_states_mask": torch.tensor([[1] * 5 + [0] * 2]),
        "img_shapes": [[(1, 4, 4)]],
        "guidance": None,
        "attention_kwargs": None,
    }


def _cogview4() -> nn.Module:
    return diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )


def _cogview4_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": randn(generator, 1, 8, 8),
        "original_size": torch.tensor([[64.0, 64.0]]),
        "target_size": torch.tensor([[64.0, 64.0]]),
        "crop_coords": torch.tensor([[0.0, 0.0]]),
        "attention_kwargs": None,
    }


def _sd3() -> nn.Module:
    """Two attentions in the first block; a last block that ends the text stream."""
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _sd3_inputs(generator: torch.Generator) -> Inputs:
    return {
        "encoder_hidden_states": randn(generator, 2, 6, 8),
        "pooled_projections": randn(generator, 2, 8),
        "joint_attention_kwargs": None,
    }


def _thousandth(t: Tensor, batch: int) -> Tensor:
    return t.expand(batch) / 1000


def _controlled(name: str, at: Callable[[Inputs, int], Inputs]) -> TinyModel:
    return TinyModel(
        name, _flux, (1, 16, 4), _controlled_inputs, timestep=_thousandth, at=at
    )


IMAGE_MODELS = (
    TinyModel(
        "pixart",
        _pixart,
        (2, 4, 8, 8),
        lambda g: {
            "encoder_hidden_states": randn(g, 2, 6, 8),
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
        timestep=_thousandth,
    ),
)

MORE_IMAGE_MODELS = (
    _controlled("flux_controlnet", lambda inputs, step: inputs),
    _controlled("flux_controlnet_moving", _moving_controls),
    TinyModel("flux2", _flux2, (1, 16, 4), _flux2_inputs, timestep=_thousandth),
    TinyModel(
        "qwenimage", _qwenimage, (1, 16, 16), _qwenimage_inputs, timestep=_thousandth
    ),
    TinyModel("cogview4", _cogview4, (1, 4, 8, 8), _cogview4_inputs),
    TinyModel("sd3", _sd3, (2, 4, 8, 8), _sd3_inputs),
)
