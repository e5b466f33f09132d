"""What `graphcache inspect` prints, and transformers without their pipelines."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import graphcache
from graphcache.errors import GraphCacheError

KINDS = ("attention", "feed-forward", "block")


def load_transformer(path: Path, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a transformer that diffusers' ``save_pretrained`` wrote, in eval mode.

    Args:
        path: Its folder.
        dtype: The precision of its weights; None for that of the file.

    Raises:
        GraphCacheError: If there is none in `path`, or diffusers cannot load it.
    """
    if not (path / "config.json").is_file():
        raise GraphCacheError(
            f"{path} has no config.json: give the directory that save_pretrained of a "
            "diffusers transformer wrote"
        )
    loader = importlib.import_module("diffusers").AutoModel
    try:
        module: nn.Module = loader.from_pretrained(
            str(path), use_safetensors=True, dtype=dtype
        )
    except (OSError, ValueError) as error:
        raise GraphCacheError(f"diffusers cannot load {path}: {error}") from error
    return module.eval()


def latent_shape(config: Any) -> tuple[int, int, int, int]:
    """Frames, channels, height and width of one clip that a CogVideoX is made for."""
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    # Version 1.5 has patches of several frames, and its pipelines pad to whole ones.
    frames += -frames % (config.patch_size_t or 1)
    return frames, config.in_channels, config.sample_height, config.sample_width


def example_inputs(transformer: nn.Module, batch: int = 2) -> dict[str, Any]:
    """Keyword arguments of one call, of the shapes that the config asks for.

    Args:
        transformer: A `CogVideoXTransformer3DModel`.
        batch: Clips; 2 is one clip with classifier-free guidance.

    Raises:
        GraphCacheError: For a transformer of another class.
    """
    name = type(transformer).__name__
    if name != "CogVideoXTransformer3DModel":
        raise GraphCacheError(
            "a folder of a transformer alone is known for CogVideoXTransformer3DModel, "
            f"and this is {name}: give the folder of its pipeline, or call "
            "graphcache.trace(module, config, **inputs) with its inputs"
        )
    config: Any = transformer.config
    dtype = next(transformer.parameters()).dtype
    frames, channels, height, width = latent_shape(config)
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(
            batch, frames, channels, height, width, dtype=dtype
        ),
        "encoder_hidden_states": torch.randn(
            batch, config.max_text_seq_length, config.text_embed_dim, dtype=dtype
        ),
        "timestep": torch.full((batch,), 500),
    }
    if config.ofs_embed_dim is not None:
        inputs["ofs"] = torch.full((1,), 2.0, dtype=dtype)
    if config.use_rotary_positional_embeddings:
        patches = (height // config.patch_size) * (width // config.patch_size)
        tokens = frames // (config.patch_size_t or 1) * patches
        table = torch.ones(tokens, config.attention_head_dim)
        inputs["image_rotary_emb"] = (table, table.clone())
    return inputs


METHODS: dict[str, dict[str, Any]] = {
    "dbcache": {"method": "dbcache", "head": 1, "tail": 1},
    "fastercache": {"method": "fastercache"},
    "first-block": {"method": "first_block_cache"},
    "fora": {"method": "fora", "interval": 2},
    "pab": {"method": "pab", "spatial": 2},
    "taylorseer": {"method": "taylorseer"},
    "taylorseer-lite": {"method": "taylorseer", "lite": True},
    "teacache": {"method": "teacache", "threshold": 0.1},
}
"""Methods that need no calibration, at settings that show their plan."""


def method(name: str) -> object:
    """The policies of a method.

    Raises:
        GraphCacheError: If there is no such method.
    """
    if name not in METHODS:
        raise GraphCacheError(
            f"unknown method {name!r}: know {', '.join(METHODS)}; with options of "
            "your own it is a file, for --config"
        )
    return graphcache.config_from_dict(METHODS[name])


def report(transformer: nn.Module, inputs: Mapping[str, Any], config: object) -> str:
    """The plan of a transformer under some policies, as text.

    Args:
        transformer: In eval mode.
        inputs: Keyword arguments of one call.
        config: What to cache, as for `graphcache.compile`.

    Raises:
        GraphCacheError: If the model cannot be captured, or the policies match nothing
            in it.
    """
    found = graphcache.explain(transformer, config, **inputs)
    counts = Counter(region.kind for region in found.program.regions)
    shown = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    return f"{type(transformer).__name__}: {shown} regions\n{found}"
