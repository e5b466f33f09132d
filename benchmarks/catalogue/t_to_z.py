"""Transformers from the T5 decoder of spectrograms to Z-Image."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, randn
from benchmarks.catalogue.entry import Entry


def _t5_film() -> nn.Module:
    return diffusers.T5FilmDecoder(
        input_dims=4,
        targets_length=8,
        d_model=16,
        num_layers=2,
        num_heads=2,
        d_kv=8,
        d_ff=32,
    )


def _t5_film_inputs(rng: Rng) -> Inputs:
    mask = torch.tensor([[True] * 4 + [False] * 2])
    return {
        "encodings_and_masks": [
            (randn(rng, 1, 6, 16), mask),
            (randn(rng, 1, 8, 16), torch.ones(1, 8, dtype=torch.bool)),
        ],
        "decoder_input_tokens": randn(rng, 1, 8, 4),
        "decoder_noise_time": torch.tensor([0.5]),
    }


def _transformer2d() -> nn.Module:
    return diffusers.Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=4,
        num_vector_embeds=12,
        activation_fn="geglu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm",
    )


def _transformer2d_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": torch.randint(0, 12, (2, 16), generator=rng),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "timestep": torch.tensor(500),
    }


def _temporal() -> nn.Module:
    return diffusers.TransformerTemporalModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=8,
        num_layers=2,
        norm_num_groups=4,
    )


def _temporal_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 4, 8, 4, 4),
        "timestep": torch.tensor([500]),
        "num_frames": 4,
    }


def _uvit2d() -> nn.Module:
    return diffusers.UVit2DModel(
        hidden_size=16,
        cond_embed_dim=8,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=8,
        vocab_size=12,
        codebook_size=11,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=2,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        sample_size=4,
    )


def _uvit2d_inputs(rng: Rng) -> Inputs:
    return {
        "input_ids": torch.randint(0, 12, (2, 4, 4), generator=rng),
        "encoder_hidden_states": randn(rng, 2, 6, 8),
        "pooled_text_emb": randn(rng, 2, 8),
        "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]] * 2),
    }


def _unidiffuser() -> nn.Module:
    return diffusers.UniDiffuserModel(
        text_dim=8,
        clip_img_dim=8,
        num_text_tokens=6,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu",
        num_embeds_ada_norm=1000,
        norm_type="layer_norm",
        block_type="unidiffuser",
        use_data_type_embedding=True,
    )


def _unidiffuser_inputs(rng: Rng) -> Inputs:
    return {
        "latent_image_embeds": randn(rng, 1, 4, 8, 8),
        "image_embeds": randn(rng, 1, 1, 8),
        "prompt_embeds": randn(rng, 1, 6, 8),
        "timestep_img": torch.tensor(500),
        "timestep_text": torch.tensor(500),
        "data_type": 1,
    }


def _wan_animate2() -> nn.Module:
    # The image projection is 1280 wide whatever the config says.
    return diffusers.WanAnimate2Transformer3DModel(
        text_len=8,
        in_dim=12,
        dim=24,
        ffn_dim=32,
        freq_dim=32,
        text_dim=16,
        out_dim=4,
        num_heads=2,
        num_layers=2,
    )


def _wan_animate2_inputs(rng: Rng) -> Inputs:
    from diffusers.models.transformers import transformer_wan_animate_2 as animate

    # What the reference pass, 2 by 2 by 2 tokens, left for the generation pass, which
    # has one frame more: the reference image's.
    cache = animate.WanAnimate2KVCache(2)
    for layer in cache.layer_caches:
        layer.store(randn(rng, 1, 8, 2, 12), randn(rng, 1, 8, 2, 12))
    return {
        "hidden_states": [randn(rng, 4, 3, 4, 4)],
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": [randn(rng, 6, 16)],
        "condition_latents": [randn(rng, 8, 3, 4, 4)],
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": 12,
        "encoder_hidden_states_image": randn(rng, 1, 4, 1280),
        "reference_grid_sizes": torch.tensor([[2, 2, 2]]),
        "origin_len": 5,
        "origin_area": [32, 32],
    }


def _wan_animate() -> nn.Module:
    return diffusers.WanAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=4,
        image_dim=8,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )


def _wan_animate_inputs(rng: Rng) -> Inputs:
    # Blocks take the last 512 tokens of the context for text. The face has 4 frames
    # for every frame of the pose, and one more.
    return {
        "hidden_states": randn(rng, 1, 12, 3, 4, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": randn(rng, 1, 512, 16),
        "encoder_hidden_states_image": randn(rng, 1, 3, 8),
        "pose_hidden_states": randn(rng, 1, 4, 2, 4, 4),
        "face_pixel_values": randn(rng, 1, 3, 5, 16, 16),
    }


def _wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
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


def _wan_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 4, 2, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
    }


def _wan_vace() -> nn.Module:
    return diffusers.WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
        vace_layers=[0, 2],
        vace_in_channels=8,
    )


def _wan_vace_inputs(rng: Rng) -> Inputs:
    return {
        **_wan_inputs(rng),
        "control_hidden_states": randn(rng, 1, 8, 2, 8, 8),
        "control_hidden_states_scale": torch.tensor([1.0, 0.5]),
    }


def _z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 16, 16],
    )


def _z_image_inputs(rng: Rng) -> Inputs:
    # One tensor per picture, and captions of their own lengths.
    return {
        "x": [randn(rng, 4, 1, 8, 8) for _ in range(2)],
        "t": torch.tensor([0.5, 0.5]),
        "cap_feats": [randn(rng, length, 8) for length in (6, 4)],
    }


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "T5FilmDecoder",
        _t5_film,
        _t5_film_inputs,
        note="the timestep is decoder_noise_time",
    ),
    Entry(
        "Transformer2DModel",
        _transformer2d,
        _transformer2d_inputs,
        note="over picture tokens, as VQ Diffusion calls it",
    ),
    Entry(
        "TransformerTemporalModel",
        _temporal,
        _temporal_inputs,
        note="a part of a U-Net; it ignores the timestep",
    ),
    Entry(
        "UVit2DModel",
        _uvit2d,
        _uvit2d_inputs,
        note="no timestep: the tokens still masked tell the step",
    ),
    Entry(
        "UniDiffuserModel",
        _unidiffuser,
        _unidiffuser_inputs,
        note="a timestep for the picture and one for the text",
    ),
    Entry(
        "WanAnimate2Transformer3DModel",
        _wan_animate2,
        _wan_animate2_inputs,
        note="flex attention; an object holds the reference's keys and values",
    ),
    Entry("WanAnimateTransformer3DModel", _wan_animate, _wan_animate_inputs),
    Entry("WanTransformer3DModel", _wan, _wan_inputs),
    Entry("WanVACETransformer3DModel", _wan_vace, _wan_vace_inputs),
    Entry(
        "ZImageTransformer2DModel",
        _z_image,
        _z_image_inputs,
        note="the timestep is t; pictures and captions come in lists",
    ),
)
