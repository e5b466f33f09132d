"""Entries of the catalogue from AceStep to Bria."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, grid, randn
from benchmarks.catalogue.entry import Entry


def _ace_step() -> nn.Module:
    return diffusers.AceStepTransformer1DModel(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        in_channels=24,
        audio_acoustic_hidden_dim=8,
        sliding_window=4,
        encoder_hidden_size=16,
    )


def _ace_step_inputs(rng: Rng) -> Inputs:
    timestep = torch.full((2,), 0.7)
    return {
        "hidden_states": randn(rng, 2, 16, 8),
        "timestep": timestep,
        "timestep_r": timestep.clone(),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "context_latents": randn(rng, 2, 16, 16),
        "attention_kwargs": None,
    }


def _allegro() -> nn.Module:
    return diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=2,
        caption_channels=16,
    )


def _allegro_inputs(rng: Rng) -> Inputs:
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
        "hidden_states": randn(rng, 2, 4, 2, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 8, 16),
        "encoder_attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
        "timestep": torch.tensor([500, 500]),
        "image_rotary_emb": (tuple(frequencies), tuple(positions)),
    }


_ANYFLOW = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def _anyflow() -> nn.Module:
    return diffusers.AnyFlowTransformer3DModel(**_ANYFLOW)


def _anyflow_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 2, 4, 8, 8),
        "timestep": torch.full((2, 2), 900.0),
        "r_timestep": torch.full((2, 2), 600.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "attention_kwargs": None,
    }


def _anyflow_far() -> nn.Module:
    return diffusers.AnyFlowFARTransformer3DModel(
        **_ANYFLOW, full_chunk_limit=2, chunk_partition=(1, 2, 2)
    )


def _anyflow_far_inputs(rng: Rng) -> Inputs:
    """The third chunk: one chunk in the full cache, one in the compressed one."""
    cache = {
        layer: {
            "full_cache": randn(rng, 2, 2, 2, 64, 16),
            "compressed_cache": randn(rng, 2, 2, 2, 16, 16),
        }
        for layer in range(2)
    }
    return {
        "hidden_states": randn(rng, 2, 2, 4, 8, 8),
        "timestep": torch.full((2, 2), 900.0),
        "r_timestep": torch.full((2, 2), 600.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "attention_kwargs": None,
        "chunk_partition": [1, 2, 2],
        "kv_cache": cache,
        "kv_cache_flag": {"num_cached_chunks": 2, "is_cache_step": False},
    }


def _aura_flow() -> nn.Module:
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=16,
    )


def _aura_flow_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "timestep": torch.full((2,), 0.7),
        "attention_kwargs": None,
    }


def _bria_fibo2() -> nn.Module:
    return diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=4,
        n_heads=4,
        cap_feat_dim=24,
        injection_layer_ids=(1, 3),
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(32, 16, 16),
    )


def _bria_fibo2_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 4, 8, 8),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": randn(rng, 1, 3, 8, 24),
        "encoder_attention_mask": None,
        "context_latents": None,
    }


_BRIA = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": [4, 6, 6],
}


def _bria_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 16, 4),
        "timestep": torch.full((2,), 700.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "attention_kwargs": None,
        "txt_ids": torch.zeros(6, 3),
        "img_ids": grid(1, 4, 4),
    }


def _bria_fibo_inputs(rng: Rng) -> Inputs:
    mask = torch.ones(2, 1, 1, 22, dtype=torch.bool)
    mask[1, ..., 4:6] = False
    return {
        "hidden_states": randn(rng, 2, 16, 4),
        "timestep": torch.full((2,), 700.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "text_encoder_layers": [randn(rng, 2, 6, 8) for _ in range(4)],
        "joint_attention_kwargs": {"attention_mask": mask},
        "txt_ids": torch.zeros(6, 3),
        "img_ids": grid(1, 4, 4),
    }


ENTRIES: tuple[Entry, ...] = (
    Entry("AceStepTransformer1DModel", _ace_step, _ace_step_inputs),
    Entry("AllegroTransformer3DModel", _allegro, _allegro_inputs),
    Entry(
        "AnyFlowFARTransformer3DModel",
        _anyflow_far,
        _anyflow_far_inputs,
        note=(
            "Its attention is flex_attention, a higher-order operator, over a KV "
            "cache that the call reads and hands back."
        ),
    ),
    Entry("AnyFlowTransformer3DModel", _anyflow, _anyflow_inputs),
    Entry("AuraFlowTransformer2DModel", _aura_flow, _aura_flow_inputs),
    Entry(
        "BriaFibo2Transformer2DModel",
        _bria_fibo2,
        _bria_fibo2_inputs,
        note=(
            "Without a mask, as for prompts of one length; the number of gist "
            "tokens is read off a mask on the host. Keeps its rotary frequencies "
            "from the first call on."
        ),
    ),
    Entry(
        "BriaFiboTransformer2DModel",
        lambda: diffusers.BriaFiboTransformer2DModel(**_BRIA, text_encoder_dim=8),
        _bria_fibo_inputs,
    ),
    Entry(
        "BriaTransformer2DModel",
        lambda: diffusers.BriaTransformer2DModel(**_BRIA),
        _bria_inputs,
    ),
)
