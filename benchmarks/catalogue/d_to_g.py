"""Entries of the catalogue from DiT to GlmImage."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, grid, randn
from benchmarks.catalogue.entry import Entry


def _dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=8,
        num_layers=2,
        sample_size=8,
    )


def _dit_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([7, 1000]),
    }


def _dreamlite() -> nn.Module:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.unets.unet_dreamlite import DreamLiteAttnProcessor2_0

    module = diffusers.DreamLiteTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        num_layers=2,
        norm_num_groups=4,
        cross_attention_dim=16,
        use_linear_projection=True,
        qk_norm="rms_norm",
        num_kv_heads=1,
        ff_mult=2,
    )
    for part in module.modules():
        if isinstance(part, Attention):
            # As the U-Net around it does: the default one knows no grouped queries.
            part.set_processor(DreamLiteAttnProcessor2_0())
    return module


def _dreamlite_inputs(rng: Rng) -> Inputs:
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return {
        "hidden_states": randn(rng, 2, 32, 4, 4),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "timestep": torch.full((2,), 500.0),
        "encoder_attention_mask": mask,
    }


def _easy_animate() -> nn.Module:
    return diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=8,
        sample_height=8,
        num_layers=4,
        # The first blocks keep text and video weights apart, the rest share them.
        mmdit_layers=2,
        time_embed_dim=8,
        text_embed_dim=16,
        add_norm_text_encoder=True,
    )


def _easy_animate_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 2, 8, 8),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
    }


def _ernie_image() -> nn.Module:
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=8,
        out_channels=8,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )


def _ernie_image_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 8, 4, 4),
        "timestep": torch.full((2,), 500.0),
        "text_bth": randn(rng, 2, 6, 16),
        "text_lens": torch.tensor([4, 6]),
    }


def _flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _flux2_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 16, 8),
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([4.0]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "txt_ids": grid(1, 1, 1, 6)[None].contiguous(),
        "img_ids": grid(1, 4, 4, 1)[None].contiguous(),
        "joint_attention_kwargs": None,
    }


def _flux3() -> nn.Module:
    return diffusers.Flux3Transformer2DModel(
        in_channels=8,
        cond_in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _flux3_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 16, 8),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "img_ids": grid(1, 4, 4, 1),
        "txt_ids": grid(1, 1, 1, 6),
        "image_cond_hidden_states": randn(rng, 1, 4, 8),
        "image_cond_ids": grid(1, 2, 2, 1) + torch.tensor([10.0, 0.0, 0.0, 0.0]),
    }


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


def _flux_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([3.5]),
        "pooled_projections": randn(rng, 1, 8),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "txt_ids": torch.zeros(6, 3),
        "img_ids": grid(1, 4, 4),
        "joint_attention_kwargs": None,
    }


def _glm_image() -> nn.Module:
    return diffusers.GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )


def _glm_image_inputs(rng: Rng) -> Inputs:
    tokens = torch.randint(32, (1, 16), generator=rng)
    return {
        "hidden_states": randn(rng, 1, 4, 8, 8),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "prior_token_id": tokens,
        "prior_token_drop": torch.zeros_like(tokens, dtype=torch.bool),
        "timestep": torch.tensor([499.0]),
        "target_size": torch.tensor([[64.0, 64.0]]),
        "crop_coords": torch.zeros(1, 2),
        "attention_kwargs": None,
    }


ENTRIES: tuple[Entry, ...] = (
    Entry("DiTTransformer2DModel", _dit, _dit_inputs),
    Entry(
        "DreamLiteTransformer2DModel",
        _dreamlite,
        _dreamlite_inputs,
        note=(
            "A part of DreamLite's U-Net, which calls it without the timestep; it "
            "ignores one with this norm, and here it tells steps apart."
        ),
    ),
    Entry("EasyAnimateTransformer3DModel", _easy_animate, _easy_animate_inputs),
    Entry("ErnieImageTransformer2DModel", _ernie_image, _ernie_image_inputs),
    Entry("Flux2Transformer2DModel", _flux2, _flux2_inputs),
    Entry("Flux3Transformer2DModel", _flux3, _flux3_inputs),
    Entry("FluxTransformer2DModel", _flux, _flux_inputs),
    Entry(
        "GlmImageTransformer2DModel",
        _glm_image,
        _glm_image_inputs,
        note=(
            "Without kv_caches: its pipeline passes an object of that class even "
            "where it is empty, which computes the same."
        ),
    ),
)
