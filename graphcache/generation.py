"""What `graphcache export` and `graphcache run` do: an engine of a model, and its use.

`run` drives a pipeline of diffusers, unmodified, with an engine in the place of its
transformer: the model's folder gives everything but that.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import graphcache
from graphcache.engine import EngineModule
from graphcache.errors import EngineError, GraphCacheError
from graphcache.inspection import example_inputs, latent_shape, load_transformer

IMAGE = "images.png"
_SMALLEST = 96
"""Rows of a picture; smaller ones are drawn larger."""


@dataclass(frozen=True)
class Export:
    """What to export.

    Attributes:
        model: Folder of a transformer, or of a pipeline that has one.
        output: The engine to make.
        config: What to cache, as for `graphcache.compile`.
        batch: Clips in one call; twice as many as are wanted under guidance.
        backend: ``"aot_inductor"``, ``"onnx"`` or ``"tensorrt"``.
        lowering: As for `graphcache.compile`.
        options: The backend's options.
        device: The device that is to run it.
        dtype: The precision of weights and inputs, such as ``"bfloat16"``.
        overwrite: Whether an engine may be replaced.
    """

    model: Path
    output: Path
    config: object
    batch: int = 2
    backend: str = "aot_inductor"
    lowering: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    overwrite: bool = False


def export_model(wanted: Export, console: Console) -> None:
    """Write the engine of a transformer, and say what is in it.

    Raises:
        GraphCacheError: If the model cannot be loaded, captured or compiled, or the
            engine cannot be written.
    """
    nested = wanted.model / "transformer"
    folder = nested if nested.is_dir() else wanted.model
    transformer = load_transformer(folder, _dtype(wanted.dtype)).to(wanted.device)
    inputs = example_inputs(transformer, wanted.batch)
    moved = {name: _moved(value, wanted.device) for name, value in inputs.items()}
    # Nothing is run in this process, so that nothing is compiled for it either.
    compiled = graphcache.compile(
        transformer,
        wanted.config,
        backend="eager",
        lowering=wanted.lowering,
        example_inputs=moved,
    )
    path = graphcache.export(
        compiled,
        wanted.output,
        backend=wanted.backend,
        options=wanted.options,
        overwrite=wanted.overwrite,
    )
    for file in sorted(path.iterdir()):
        console.print(f"{file.stat().st_size:>14,} {file.name}", highlight=False)


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Options of a backend from ``NAME=VALUE``.

    Whole numbers, truth values and null are what they are in JSON; all else is text,
    such as the compute capability 8.9.

    Raises:
        GraphCacheError: If there is no ``=``.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise GraphCacheError(f"an option is NAME=VALUE, not {text!r}")
        plain = value in ("true", "false", "null") or value.lstrip("-").isdigit()
        found[name] = json.loads(value) if plain else value
    return found


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise GraphCacheError(f"{name!r} is no floating-point dtype of torch")
    return found


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value.to(device)


@dataclass(frozen=True)
class Generation:
    """What to generate.

    Attributes:
        engine: What `export_model` or `graphcache.export` wrote.
        model: Folder of the pipeline; its transformer is not read.
        output: Folder for the picture.
        prompts: One per clip or image; digits for the moving-digits model.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance.
        seed: Seed of the initial noise.
    """

    engine: Path
    model: Path
    output: Path
    prompts: tuple[str, ...]
    steps: int = 50
    guidance: float = 2.5
    seed: int = 1


def run_engine(wanted: Generation, console: Console) -> Path:
    """Generate with an engine; returns the picture that was written.

    Args:
        wanted: What to generate.
        console: Where the statistics are printed; progress goes to standard error.

    Raises:
        GraphCacheError: If the engine or the model cannot be loaded, or do not fit
            together.
    """
    table = wanted.model / "embeddings.safetensors"
    pipe = _digits_pipeline(wanted) if table.is_file() else _pipeline(wanted)
    engine = graphcache.load(wanted.engine, scheduler=pipe.scheduler)
    pipe.register_modules(transformer=engine)
    given = _digits(wanted, engine, table) if table.is_file() else _prompts(wanted)
    started = time.perf_counter()
    with torch.no_grad():
        output = pipe(
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance,
            generator=torch.Generator().manual_seed(wanted.seed),
            **given,
        )
    seconds = time.perf_counter() - started
    wanted.output.mkdir(parents=True, exist_ok=True)
    path = wanted.output / IMAGE
    _sheet(output).save(path)
    console.print(str(engine.cache_stats), highlight=False, markup=False)
    console.print(f"{seconds:.1f} s; written to {path}", highlight=False)
    return path


def _digits_pipeline(wanted: Generation) -> Any:
    """`CogVideoXPipeline` around the latents: no text encoder and no autoencoder."""
    diffusers = importlib.import_module("diffusers")
    scheduler = diffusers.CogVideoXDDIMScheduler.from_pretrained(
        wanted.model / "scheduler"
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=None,
        scheduler=scheduler,
    )


def _digits(wanted: Generation, engine: EngineModule, file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    table = load_file(file)["embeddings"]
    count, empty = len(wanted.prompts), len(table) - 1
    known = {str(digit): digit for digit in range(empty)}
    if unknown := [prompt for prompt in wanted.prompts if prompt not in known]:
        raise GraphCacheError(
            f"this model draws the digits 0 to {empty - 1}, not {', '.join(unknown)}"
        )
    noise = torch.Generator().manual_seed(wanted.seed)
    return {
        "prompt_embeds": table[[known[prompt] for prompt in wanted.prompts]],
        "negative_prompt_embeds": table[empty:].expand(count, -1, -1),
        "latents": torch.randn(count, *latent_shape(engine.config), generator=noise),
        "output_type": "latent",
    }


def _pipeline(wanted: Generation) -> Any:
    if not (wanted.model / "model_index.json").is_file():
        raise GraphCacheError(
            f"{wanted.model} has no model_index.json: give the folder that "
            "save_pretrained of a diffusers pipeline wrote"
        )
    loader = importlib.import_module("diffusers").DiffusionPipeline
    try:
        return loader.from_pretrained(str(wanted.model), transformer=None)
    except (OSError, ValueError) as error:
        raise GraphCacheError(
            f"diffusers cannot load {wanted.model}: {error}"
        ) from error


def _prompts(wanted: Generation) -> dict[str, Any]:
    return {"prompt": list(wanted.prompts), "output_type": "np"}


def _sheet(output: Any) -> Any:
    """One row per clip, one column per frame; images are one frame each."""
    from PIL import Image

    found = getattr(output, "frames", None)
    frames = torch.as_tensor(output.images if found is None else found).detach()
    if frames.ndim == 4:
        frames = frames[:, None]
    if found is not None and isinstance(found, Tensor):
        # Latents that are grey values from -1 to 1, channels first.
        frames = frames.float().movedim(2, -1) * 0.5 + 0.5
    clips, count, height, width, channels = frames.shape
    if channels not in (1, 3):
        raise EngineError(f"pictures of {channels} channels cannot be drawn")
    bytes_ = (frames.clamp(0, 1) * 255).round().to(torch.uint8)
    rows = bytes_.permute(0, 2, 1, 3, 4).reshape(
        clips * height, count * width, channels
    )
    image = Image.fromarray(rows.expand(-1, -1, 3).numpy())
    scale = -(-_SMALLEST // height)
    return image.resize(
        (image.width * scale, image.height * scale), Image.Resampling.NEAREST
    )
