"""Entries of the catalogue from Chroma to Cosmos."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, grid, randn, rotary
from benchmarks.catalogue.entry import Entry


def _chroma() -> nn.Module:
    return diffusers.ChromaTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )


def _chroma_inputs(rng: Rng) -> Inputs:
    mask = torch.ones(1, 22, dtype=torch.bool)
    mask[:, 4:6] = False
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "txt_ids": torch.zeros(6, 3),
        "img_ids": grid(1, 4, 4),
        "attention_mask": mask,
        "joint_attention_kwargs": None,
    }


def _chrono_edit() -> nn.Module:
    return diffusers.ChronoEditTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        image_dim=8,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
    )


def _chrono_edit_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 12, 2, 8, 8),
        "timestep": torch.tensor([500]),
        # Attention splits the text off at its fixed length, 512; the rest is image.
        "encoder_hidden_states": randn(rng, 1, 512, 16),
        "encoder_hidden_states_image": randn(rng, 1, 5, 8),
        "attention_kwargs": None,
    }


def _cogvideox() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=8,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=True,
    )


def _cogvideox_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 2, 4, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 8, 8),
        "timestep": torch.tensor([500, 500]),
        "image_rotary_emb": rotary(rng, 32, 16),
        "attention_kwargs": None,
    }


_COGVIEW = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 16,
    "condition_dim": 8,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}


def _cogview_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "timestep": torch.tensor([500, 500]),
        "original_size": torch.tensor([[64.0, 64.0]] * 2),
        "target_size": torch.tensor([[64.0, 64.0]] * 2),
        "crop_coords": torch.zeros(2, 2),
    }


def _consis_id() -> nn.Module:
    return diffusers.ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=8,
        num_layers=4,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=True,
        is_train_face=True,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=12,
        LFE_vit_dim=16,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_ff_mult=2,
        LFE_num_scale=2,
    )


def _consis_id_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 2, 8, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 8, 8),
        "timestep": torch.tensor([500, 500]),
        "image_rotary_emb": rotary(rng, 32, 24),
        "attention_kwargs": None,
        "id_vit_hidden": [randn(rng, 2, 5, 16) for _ in range(2)],
        "id_cond": randn(rng, 2, 12),
    }


def _cosmos3() -> nn.Module:
    return diffusers.Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=64,
        latent_channel=4,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_key_value_heads=2,
        patch_latent_dim=16,
        rope_axes_dim=(4, 2, 2),
        vocab_size=64,
    )


def _cosmos3_inputs(rng: Rng) -> Inputs:
    """Text of 6 tokens, then 3 frames of 4 tokens, the first frame a condition."""
    return {
        "input_ids": torch.randint(64, (6,), generator=rng),
        "text_indexes": torch.arange(6),
        "position_ids": torch.arange(18.0).expand(3, 18).contiguous(),
        "und_len": 6,
        "sequence_length": 18,
        "vision_tokens": [randn(rng, 1, 4, 3, 4, 4)],
        "vision_token_shapes": [(3, 2, 2)],
        "vision_sequence_indexes": torch.arange(6, 18),
        "vision_mse_loss_indexes": torch.arange(10, 18),
        "vision_timesteps": torch.full((8,), 700.0),
        "vision_noisy_frame_indexes": [torch.tensor([1, 2])],
    }


def _cosmos() -> nn.Module:
    return diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        concat_padding_mask=False,
    )


def _cosmos_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 4, 2, 8, 8),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "fps": 30,
        "padding_mask": torch.zeros(1, 1, 64, 64),
    }


ENTRIES: tuple[Entry, ...] = (
    Entry("ChromaTransformer2DModel", _chroma, _chroma_inputs),
    Entry(
        "ChronoEditTransformer3DModel",
        _chrono_edit,
        _chrono_edit_inputs,
        note=("512 text tokens, since attention counts the image's from there."),
    ),
    Entry("CogVideoXTransformer3DModel", _cogvideox, _cogvideox_inputs),
    Entry(
        "CogView3PlusTransformer2DModel",
        lambda: diffusers.CogView3PlusTransformer2DModel(**_COGVIEW),
        _cogview_inputs,
    ),
    Entry(
        "CogView4Transformer2DModel",
        lambda: diffusers.CogView4Transformer2DModel(**_COGVIEW, rope_axes_dim=(8, 8)),
        _cogview_inputs,
    ),
    Entry("ConsisIDTransformer3DModel", _consis_id, _consis_id_inputs),
    Entry(
        "Cosmos3OmniTransformer",
        _cosmos3,
        _cosmos3_inputs,
        note=(
            "Has no timestep by a common name: steps are told apart by "
            "cache_context, which its pipeline enters. Returns None for sound and "
            "action."
        ),
    ),
    Entry(
        "CosmosTransformer3DModel",
        _cosmos,
        _cosmos_inputs,
        note=(
            "Without concat_padding_mask, which needs torchvision to resize the "
            "mask; the mask is ignored then."
        ),
    ),
)
