"""Transformers from MiniMax H3 to Ovis-Image."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, grid, randn
from benchmarks.catalogue.entry import Entry


def _minimax_h3() -> nn.Module:
    return diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=2,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=4,
        text_dim=8,
        freq_dim=16,
        time_embed_hidden_dim=16,
        time_embed_dim=16,
        rope_freq_dim=2,
    )


def _minimax_h3_inputs(rng: Rng) -> Inputs:
    # One packed sequence: 4 text rows, 3 audio rows, then 2 by 2 by 2 video rows.
    text, audio, video = torch.arange(15).split([4, 3, 8])
    tags = torch.tensor([0] * 4 + [2] * 3 + [1] * 8)
    return {
        "hidden_states": randn(rng, 1, 8, 16),
        "audio_hidden_states": randn(rng, 1, 3, 4),
        "encoder_hidden_states": randn(rng, 1, 4, 8),
        "timestep": torch.tensor([0.0, 0.5]),
        "timestep_indices": (tags > 0).long(),
        "token_tags": tags,
        "position_ids": torch.cat([grid(7, 1, 1), grid(2, 2, 2)]).double(),
        "video_indices": video.clone(),
        "audio_indices": audio.clone(),
        "text_indices": text.clone(),
    }


def _minimax_music3() -> nn.Module:
    return diffusers.MiniMaxMusic3Transformer1DModel(
        in_channels=4,
        condition_dim=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        ff_inner_dim=32,
        rotary_dim=4,
        fourier_embedding_dim=16,
    )


def _minimax_music3_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 4, 12),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": randn(rng, 1, 12, 8),
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


def _mochi_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 2, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 8, 16),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]).bool(),
    }


def _motif() -> nn.Module:
    return diffusers.MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=4,
        num_decoder_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )


def _motif_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 9, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "encoder_attention_mask": torch.tensor([[1] * 4 + [0] * 2]),
    }


def _nucleus() -> nn.Module:
    return diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=4,
        out_channels=1,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=6.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )


def _nucleus_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "encoder_hidden_states_mask": torch.tensor([[1] * 4 + [0] * 2]),
        "img_shapes": [(1, 4, 4)],
        "attention_kwargs": {},
    }


def _omnigen() -> nn.Module:
    return diffusers.OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=64,
        max_position_embeddings=1024,
        original_max_position_embeddings=64,
        rope_scaling={
            "type": "su",
            "short_factor": [1.0] * 8,
            "long_factor": [1.5] * 8,
        },
        pos_embed_max_size=8,
        time_step_dim=16,
    )


def _omnigen_inputs(rng: Rng) -> Inputs:
    # 6 text tokens, the timestep's and 16 of the image, which sees all before it.
    mask = torch.ones(23, 23, dtype=torch.long).tril()
    mask[7:] = 1
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "timestep": torch.tensor([0.5, 0.5]),
        "input_ids": torch.randint(1, 64, (2, 6), generator=rng),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask.expand(2, -1, -1).contiguous(),
        "position_ids": torch.arange(23).expand(2, -1).contiguous(),
    }


def _ovis() -> nn.Module:
    return diffusers.OvisImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
    )


def _ovis_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "txt_ids": torch.arange(6.0)[:, None] * torch.tensor([0.0, 1.0, 1.0]),
        "img_ids": grid(1, 4, 4),
    }


ENTRIES: tuple[Entry, ...] = (
    Entry("MiniMaxH3Transformer3DModel", _minimax_h3, _minimax_h3_inputs),
    Entry("MiniMaxMusic3Transformer1DModel", _minimax_music3, _minimax_music3_inputs),
    Entry("MochiTransformer3DModel", _mochi, _mochi_inputs),
    Entry("MotifVideoTransformer3DModel", _motif, _motif_inputs),
    Entry(
        "NucleusMoEImageTransformer2DModel",
        _nucleus,
        _nucleus_inputs,
        note="experts in a loop: grouped products are traced in bfloat16 alone",
    ),
    Entry(
        "OmniGenTransformer2DModel",
        _omnigen,
        _omnigen_inputs,
        note="the largest position chooses the rotary frequencies",
    ),
    Entry("OvisImageTransformer2DModel", _ovis, _ovis_inputs),
)
