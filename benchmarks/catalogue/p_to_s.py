"""Transformers from PRX to Stable Audio."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, randn, rotary
from benchmarks.catalogue.entry import Entry


def _prx() -> nn.Module:
    return diffusers.PRXTransformer2DModel(
        in_channels=4,
        context_in_dim=8,
        hidden_size=32,
        num_heads=2,
        depth=2,
        axes_dim=[8, 8],
    )


def _prx_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "attention_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
    }


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
    )


def _pixart_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "timestep": torch.tensor([500, 500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _prior() -> nn.Module:
    return diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=8,
        num_embeddings=6,
    )


def _prior_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 8),
        "timestep": torch.tensor(500),
        "proj_embedding": randn(rng, 2, 8),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "attention_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
    }


def _qwen_image21() -> nn.Module:
    return diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=8,
        axes_dims_rope=(4, 6, 6),
    )


def _qwen_image21_inputs(rng: Rng) -> Inputs:
    # 6 text tokens, then one slot for every 2 by 2 of the 16 image tokens.
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "encoder_hidden_states_mask": torch.tensor([[1] * 4 + [0] * 2]),
        "img_shapes": [[(1, 4, 4)]],
        "img_mask": torch.tensor([[False] * 6 + [True] * 4]),
    }


def _qwen_image() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=1,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
    )


def _qwen_image_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 16, 4),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states_mask": torch.tensor([[1] * 4 + [0] * 2]),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "img_shapes": [[(1, 4, 4)]],
        "attention_kwargs": {},
    }


def _rfd4() -> nn.Module:
    return diffusers.RFD4ProteinaTransformer(
        nlayers=4,
        token_dim=32,
        nheads=2,
        dim_cond=16,
        pair_repr_dim=16,
        latent_dim=4,
        tri_mult_c=8,
    )


def _rfd4_inputs(rng: Rng) -> Inputs:
    length = 6
    names = "hbond pistack pication saltbridge hydrophobic metal-coord".split()
    tokens = torch.arange(length)[None]
    conditioning = {
        **{f"condition_{name}_1_atom": torch.zeros(1, length, 37) for name in names},
        "condition_index-group_1_token": torch.zeros(1, length),
        "molecule_iid": torch.zeros(1, length, dtype=torch.long),
        "molecule_entity_id": torch.zeros(1, length, dtype=torch.long),
        "token_bond_path_length": (tokens.mT - tokens).abs()[None],
        "is_in_context_conditioning": tokens < 2,
        "supports_local_latent": torch.ones(1, length, dtype=torch.bool),
    }
    return {
        "bb_ca": randn(rng, 1, length, 3),
        "local_latents": randn(rng, 1, length, 4),
        "bb_ca_time": torch.tensor([0.5]),
        "local_latents_time": torch.tensor([0.4]),
        "padding_mask": torch.tensor([[True] * 5 + [False]]),
        "token_type": torch.zeros(1, length, dtype=torch.long),
        "atom37_mask": torch.ones(1, length, 37, dtype=torch.bool),
        "conditioning": conditioning,
        "recycle_depth": 2,
    }


def _sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def _sd3_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "pooled_projections": randn(rng, 2, 8),
    }


def _sana() -> nn.Module:
    return diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
    )


def _sana_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "timestep": torch.tensor([500.0, 500.0]),
    }


def _sana_video() -> nn.Module:
    return diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
    )


def _sana_video_inputs(rng: Rng) -> Inputs:
    latents = randn(rng, 2, 4, 2, 8, 8)
    return {**_sana_inputs(rng), "hidden_states": latents}


def _sana_wm_refiner() -> nn.Module:
    return diffusers.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=8,
    )


def _sana_wm_refiner_inputs(rng: Rng) -> Inputs:
    from diffusers.models.transformers import transformer_sana_wm_refiner as refiner

    # The keys and values of a frame that the frames at hand attend to as well.
    cache = refiner.SanaWMRefinerKVCache(2)
    for layer in cache.layer_caches:
        layer.store_sink(randn(rng, 1, 4, 16), randn(rng, 1, 4, 16))
    angles = randn(rng, 1, 12, 16)
    cache.sink_pe = (angles[:, :4].cos(), angles[:, :4].sin())
    return {
        "hidden_states": randn(rng, 1, 8, 4),
        "encoder_hidden_states": randn(rng, 1, 6, 8),
        "timestep": torch.full((1, 8), 500.0),
        "video_rotary_emb": (angles[:, 4:].cos(), angles[:, 4:].sin()),
        "encoder_attention_mask": torch.tensor([[1] * 4 + [0] * 2]),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
    }


def _sana_wm() -> nn.Module:
    return diffusers.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=8,
        caption_channels=8,
    )


def _sana_wm_inputs(rng: Rng) -> Inputs:
    frames, size = 4, 4
    # A camera that moves forward: poses, then focal lengths and centre.
    poses = torch.eye(4).repeat(1, frames, 1, 1)
    poses[..., 2, 3] = 0.1 * torch.arange(frames)
    lens = torch.tensor([4.0, 4.0, 2.0, 2.0]).expand(1, frames, 4)
    return {
        "hidden_states": randn(rng, 1, 4, frames, size, size),
        "timestep": torch.tensor([[[0.0, 500.0, 500.0, 500.0]]]),
        "encoder_hidden_states": randn(rng, 1, 1, 6, 8),
        "data_info": {"img_hw": torch.tensor([[128.0, 128.0]])},
        "mask": torch.tensor([[1] * 4 + [0] * 2]),
        "camera_conditions": torch.cat([poses.flatten(-2), lens], dim=-1),
        "chunk_plucker": randn(rng, 1, 8, frames, size, size),
    }


def _skyreels() -> nn.Module:
    return diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        ffn_dim=32,
        num_layers=2,
    )


def _skyreels_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 4, 2, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
    }


def _stable_audio3() -> nn.Module:
    return diffusers.StableAudio3DiTModel(
        io_channels=4,
        embed_dim=32,
        depth=2,
        num_heads=2,
        cond_token_dim=8,
        global_cond_dim=8,
        num_memory_tokens=4,
    )


def _stable_audio3_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 12),
        "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "global_hidden_states": randn(rng, 2, 8),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    }


def _stable_audio() -> nn.Module:
    return diffusers.StableAudioDiTModel(
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        global_states_input_dim=8,
        cross_attention_input_dim=8,
    )


def _stable_audio_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 12),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "global_hidden_states": randn(rng, 2, 1, 8),
        # Half of each head is rotated; the duration is one more token.
        "rotary_embedding": rotary(rng, 13, 8),
    }


ENTRIES: tuple[Entry, ...] = (
    Entry("PRXTransformer2DModel", _prx, _prx_inputs),
    Entry("PixArtTransformer2DModel", _pixart, _pixart_inputs),
    Entry("PriorTransformer", _prior, _prior_inputs),
    Entry(
        "QwenImage21Transformer2DModel",
        _qwen_image21,
        _qwen_image21_inputs,
        note="as with use_kv_cache=False; the mask says where the picture's tokens go",
    ),
    Entry("QwenImageTransformer2DModel", _qwen_image, _qwen_image_inputs),
    Entry(
        "RFD4ProteinaTransformer",
        _rfd4,
        _rfd4_inputs,
        note="two times, neither called timestep; without the chirality feature",
    ),
    Entry("SD3Transformer2DModel", _sd3, _sd3_inputs),
    Entry("SanaTransformer2DModel", _sana, _sana_inputs),
    Entry("SanaVideoTransformer3DModel", _sana_video, _sana_video_inputs),
    Entry(
        "SanaWMLTX2RefinerTransformer3DModel",
        _sana_wm_refiner,
        _sana_wm_refiner_inputs,
        note="an object holds the keys and values of frames refined before",
    ),
    Entry("SanaWMTransformer3DModel", _sana_wm, _sana_wm_inputs),
    Entry("SkyReelsV2Transformer3DModel", _skyreels, _skyreels_inputs),
    Entry("StableAudio3DiTModel", _stable_audio3, _stable_audio3_inputs),
    Entry("StableAudioDiTModel", _stable_audio, _stable_audio_inputs),
)
