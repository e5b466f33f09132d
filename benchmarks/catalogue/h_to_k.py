"""Entries of the catalogue from Helios to Kandinsky5."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from benchmarks.catalogue.draw import Inputs, Rng, randn, rotary
from benchmarks.catalogue.entry import Entry


def _helios() -> nn.Module:
    return diffusers.HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
        rope_dim=(4, 6, 6),
        is_amplify_history=True,
    )


def _helios_inputs(rng: Rng) -> Inputs:
    """Two frames after a history of two near, two further and four far ones."""
    long, mid, short, now = torch.arange(10)[None].split([4, 2, 2, 2], dim=1)
    return {
        "hidden_states": randn(rng, 1, 4, 2, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "indices_hidden_states": now,
        "indices_latents_history_short": short,
        "indices_latents_history_mid": mid,
        "indices_latents_history_long": long,
        "latents_history_short": randn(rng, 1, 4, 2, 8, 8),
        "latents_history_mid": randn(rng, 1, 4, 2, 8, 8),
        "latents_history_long": randn(rng, 1, 4, 4, 8, 8),
        "attention_kwargs": None,
    }


def _hidream() -> nn.Module:
    return diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[16, 24],
        text_emb_dim=16,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(8, 8),
        llama_layers=[0, 1, 2, 3],
    )


def _hidream_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "timesteps": torch.full((2,), 500.0),
        "encoder_hidden_states_t5": randn(rng, 2, 6, 16),
        "encoder_hidden_states_llama3": randn(rng, 4, 2, 6, 24),
        "pooled_embeds": randn(rng, 2, 16),
        "attention_kwargs": None,
    }


def _hunyuan_dit() -> nn.Module:
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        mlp_ratio=2.0,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=6,
        text_len_t5=8,
    )


def _hunyuan_dit_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 8, 8),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "text_embedding_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "encoder_hidden_states_t5": randn(rng, 2, 8, 16),
        "text_embedding_mask_t5": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]] * 2),
        "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": rotary(rng, 16, 16),
    }


def _hunyuan_image() -> nn.Module:
    return diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        text_embed_dim=16,
        rope_axes_dim=(8, 8),
        guidance_embeds=True,
    )


def _hunyuan_image_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 2, 4, 4, 4),
        "timestep": torch.full((2,), 500.0),
        "timestep_r": None,
        "guidance": torch.full((2,), 3250.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "attention_kwargs": {},
    }


def _hunyuan_video15() -> nn.Module:
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=2,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
    )


def _hunyuan_video15_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 9, 2, 4, 4),
        # All zero is how the pipeline says that there is no image.
        "image_embeds": torch.zeros(1, 4, 12),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "encoder_attention_mask": torch.tensor([[1.0] * 4 + [0.0] * 2]),
        "encoder_hidden_states_2": randn(rng, 1, 4, 8),
        "encoder_attention_mask_2": torch.tensor([[1.0] * 3 + [0.0]]),
        "attention_kwargs": None,
    }


_HUNYUAN_VIDEO = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 2,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}


def _hunyuan_video_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 4, 2, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "encoder_attention_mask": torch.tensor([[1] * 4 + [0] * 2]),
        "pooled_projections": randn(rng, 1, 8),
        "guidance": torch.tensor([6000.0]),
        "attention_kwargs": None,
    }


def _framepack_inputs(rng: Rng) -> Inputs:
    """A start frame, then a history of four far, two further and one near frame."""
    prefix, far, further, near, now = torch.arange(10).split([1, 4, 2, 1, 2])
    return {
        **_hunyuan_video_inputs(rng),
        "image_embeds": randn(rng, 1, 5, 12),
        "indices_latents": now,
        "latents_clean": randn(rng, 1, 4, 2, 8, 8),
        "indices_latents_clean": torch.cat([prefix, near]),
        "latents_history_2x": randn(rng, 1, 4, 2, 8, 8),
        "indices_latents_history_2x": further,
        "latents_history_4x": randn(rng, 1, 4, 4, 8, 8),
        "indices_latents_history_4x": far,
    }


def _ideogram() -> nn.Module:
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=64,
        adaln_dim=16,
        llm_features_dim=24,
        mrope_section=(4, 2, 2),
    )


def _ideogram_inputs(rng: Rng) -> Inputs:
    """One sequence of padding, text and image: 2, 4 and 16 tokens."""
    image = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(4))
    text = torch.arange(4)[:, None].expand(-1, 3)
    padding = torch.zeros(2, 3, dtype=torch.long)
    return {
        "hidden_states": randn(rng, 1, 22, 8),
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": randn(rng, 1, 22, 24),
        "position_ids": torch.cat([padding, text, image + 65536])[None],
        "segment_ids": torch.tensor([[-1] * 2 + [1] * 20]),
        "indicator": torch.tensor([[-1] * 2 + [3] * 4 + [2] * 16]),
        "attention_kwargs": None,
    }


_JOY_IMAGE = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
}


def _joy_image_edit_inputs(rng: Rng) -> Inputs:
    """One reference image and the image to draw."""
    return {
        "hidden_states": randn(rng, 1, 2, 4, 1, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
    }


def _joy_image_edit_plus_inputs(rng: Rng) -> Inputs:
    """Patches of the image and of a reference, which one sample lacks."""
    return {
        "hidden_states": randn(rng, 2, 20, 4, 1, 2, 2),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": randn(rng, 2, 6, 16),
        "encoder_hidden_states_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "shape_list": [[(1, 4, 4), (1, 2, 2)], [(1, 4, 4)]],
    }


def _kandinsky5() -> nn.Module:
    return diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=2,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        visual_cond=True,
    )


def _kandinsky5_inputs(rng: Rng) -> Inputs:
    return {
        "hidden_states": randn(rng, 1, 2, 8, 8, 9),
        "encoder_hidden_states": randn(rng, 1, 6, 16),
        "pooled_projections": randn(rng, 1, 8),
        "timestep": torch.tensor([500.0]),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(6),
        "scale_factor": (1.0, 2.0, 2.0),
        "sparse_params": None,
    }


ENTRIES: tuple[Entry, ...] = (
    Entry("HeliosTransformer3DModel", _helios, _helios_inputs),
    Entry(
        "HiDreamImageTransformer2DModel",
        _hidream,
        _hidream_inputs,
        note=(
            "Sorts tokens by expert on the host, in NumPy, so its control flow "
            "depends on the latents."
        ),
    ),
    Entry("HunyuanDiT2DModel", _hunyuan_dit, _hunyuan_dit_inputs),
    Entry(
        "HunyuanImageTransformer2DModel",
        _hunyuan_image,
        _hunyuan_image_inputs,
        note=(
            "Without glyph tokens, as the refiner is called; with them, tokens "
            "are reordered by boolean masks."
        ),
    ),
    Entry(
        "HunyuanVideo15Transformer3DModel",
        _hunyuan_video15,
        _hunyuan_video15_inputs,
        note=(
            "Asks on the host whether the image is all zero and reorders tokens "
            "by boolean masks. Its glyph projection is 2048 wide whatever the "
            "config: 4.4 M parameters."
        ),
    ),
    Entry(
        "HunyuanVideoFramepackTransformer3DModel",
        lambda: diffusers.HunyuanVideoFramepackTransformer3DModel(
            **_HUNYUAN_VIDEO,
            has_image_proj=True,
            image_proj_dim=12,
            has_clean_x_embedder=True,
        ),
        _framepack_inputs,
        note="Cuts the text to the length of its mask, which it reads on the host.",
    ),
    Entry(
        "HunyuanVideoTransformer3DModel",
        lambda: diffusers.HunyuanVideoTransformer3DModel(**_HUNYUAN_VIDEO),
        _hunyuan_video_inputs,
    ),
    Entry(
        "Ideogram4Transformer2DModel",
        _ideogram,
        _ideogram_inputs,
        note="Its timestep counts up: 0 is noise and 1 is the image.",
    ),
    Entry(
        "JoyImageEditPlusTransformer3DModel",
        lambda: diffusers.JoyImageEditPlusTransformer3DModel(**_JOY_IMAGE),
        _joy_image_edit_plus_inputs,
    ),
    Entry(
        "JoyImageEditTransformer3DModel",
        lambda: diffusers.JoyImageEditTransformer3DModel(**_JOY_IMAGE),
        _joy_image_edit_inputs,
    ),
    Entry(
        "Kandinsky5Transformer3DModel",
        _kandinsky5,
        _kandinsky5_inputs,
        note="With return_dict=False it returns the tensor itself, not a tuple.",
    ),
)
