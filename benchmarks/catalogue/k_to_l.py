"""Transformers from Kandinsky 6 to Lumina-Next."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, grid, randn
from benchmarks.catalogue.entry import Entry


def _kandinsky6_sr() -> nn.Module:
    return diffusers.Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        nabla_threshold=0.5,
        nabla_window=(1, 1, 1),
    )


def _kandinsky6_sr_inputs(rng: Rng) -> Inputs:
    # Sparse attention works on blocks of 8 by 8 tokens; this is four of them.
    return {
        "hidden_states": randn(rng, 1, 2, 8, 16, 9),
        "timestep": torch.tensor([500.0]),
    }


def _kandinsky6() -> nn.Module:
    return diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=2,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        in_audio_dim=4,
        out_audio_dim=4,
    )


def _kandinsky6_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 2, 4, 4, 9),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "pooled_projections": randn(rng, 1, 8),
        "timestep": torch.tensor([500.0]),
        "audio_hidden_states": randn(rng, 1, 5, 4),
        "encoder_attention_mask": torch.tensor([[True] * 4 + [False] * 2]),
    }


def _krea2() -> nn.Module:
    return diffusers.Krea2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        axes_dims_rope=(2, 2, 4),
    )


def _krea2_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "encoder_hidden_states": randn(rng, 1, 6, 3, 16),
        "timestep": torch.tensor([0.5]),
        "position_ids": torch.cat([torch.zeros(6, 3), grid(1, 4, 4)]),
        "encoder_attention_mask": torch.tensor([[True] * 4 + [False] * 2]),
    }


def _ltx2() -> nn.Module:
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )


def _ltx2_inputs(rng: Rng) -> Inputs:
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    # Where each token begins and ends on each axis.
    corners, seconds = grid(2, 4, 4).T, torch.arange(5.0)[None]
    return {
        "hidden_states": randn(rng, 2, 32, 8),
        "audio_hidden_states": randn(rng, 2, 5, 8),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "audio_encoder_hidden_states": randn(rng, 2, 6, 16),
        "timestep": torch.tensor([500.0, 500.0]),
        "sigma": torch.tensor([500.0, 500.0]),
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask.clone(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "fps": 24.0,
        "audio_num_frames": 5,
        "video_coords": torch.stack([corners, corners + 1], -1).repeat(2, 1, 1, 1),
        "audio_coords": torch.stack([seconds, seconds + 1], -1).repeat(2, 1, 1, 1),
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


def _ltx_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 32, 8),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "rope_interpolation_scale": (1.0, 32.0, 32.0),
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


def _latte_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 2, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 5, 8),
        "timestep": torch.tensor([500, 500]),
        "enable_temporal_attentions": True,
    }


def _longcat_audio() -> nn.Module:
    return diffusers.LongCatAudioDiTTransformer(
        dit_dim=16,
        dit_depth=2,
        dit_heads=2,
        dit_text_dim=8,
        latent_dim=4,
    )


def _longcat_audio_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 12, 4),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "encoder_attention_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        "timestep": torch.tensor([0.5, 0.5]),
        "attention_mask": torch.ones(2, 12, dtype=torch.bool),
        "latent_cond": torch.zeros(2, 12, 4),
    }


def _longcat_image() -> nn.Module:
    return diffusers.LongCatImageTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=[4, 4, 8],
    )


def _longcat_image_inputs(rng: Rng) -> Inputs:
    image = grid(1, 4, 4) + torch.tensor([1.0, 6.0, 6.0])
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "timestep": torch.tensor([0.5]),
        "guidance": None,
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "txt_ids": torch.arange(6.0)[:, None] * torch.tensor([0.0, 1.0, 1.0]),
        "img_ids": image,
    }


def _lumina2() -> nn.Module:
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 16, 16),
        cap_feat_dim=8,
    )


def _lumina2_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 4, 8, 8),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "encoder_attention_mask": torch.tensor([[True] * 4 + [False] * 2]),
    }


def _lumina_next() -> nn.Module:
    return diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        cross_attention_dim=16,
    )


def _lumina_next_inputs(rng: Rng) -> Inputs:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "encoder_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 16, 16),
        "cross_attention_kwargs": {},
    }


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "Kandinsky6SRTransformer3DModel",
        _kandinsky6_sr,
        _kandinsky6_sr_inputs,
        note="flex attention, over blocks chosen from queries and keys",
    ),
    Entry("Kandinsky6Transformer3DModel", _kandinsky6, _kandinsky6_inputs),
    Entry("Krea2Transformer2DModel", _krea2, _krea2_inputs),
    Entry("LTX2VideoTransformer3DModel", _ltx2, _ltx2_inputs),
    Entry("LTXVideoTransformer3DModel", _ltx, _ltx_inputs),
    Entry("LatteTransformer3DModel", _latte, _latte_inputs),
    Entry("LongCatAudioDiTTransformer", _longcat_audio, _longcat_audio_inputs),
    Entry("LongCatImageTransformer2DModel", _longcat_image, _longcat_image_inputs),
    Entry(
        "Lumina2Transformer2DModel",
        _lumina2,
        _lumina2_inputs,
        note="the lengths of its sequences are read off the mask",
    ),
    Entry("LuminaNextDiT2DModel", _lumina_next, _lumina_next_inputs),
)
