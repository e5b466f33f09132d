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
from torch import nn

import graphcache
from graphcache import folders
from graphcache.errors import GraphCacheError
from graphcache.folders import Request, Source
from graphcache.inspection import latent_shape
from graphcache.pictures import save_output

_DIGITS = Request(steps=50, guidance=2.5)
"""What the model of the demo is asked for where nothing is said."""


@dataclass(frozen=True)
class Export:
    """What to export.

    Attributes:
        source: The transformer, and how it is called.
        output: The engine to make.
        config: What to cache, as for `graphcache.compile`.
        backend: ``"aot_inductor"``, ``"onnx"`` or ``"tensorrt"``.
        lowering: As for `graphcache.compile`.
        options: The backend's options.
        overwrite: Whether an engine may be replaced.
    """

    source: Source
    output: Path
    config: object
    backend: str = "aot_inductor"
    lowering: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False


def export_model(wanted: Export, console: Console) -> None:
    """Write the engine of a transformer, and say what is in it.

    Raises:
        GraphCacheError: If the model cannot be loaded, captured or compiled, or the
            engine cannot be written.
    """
    transformer, inputs = wanted.source.load()
    # Nothing is run in this process, so that nothing is compiled for it either.
    compiled = graphcache.compile(
        transformer,
        wanted.config,
        backend="eager",
        lowering=wanted.lowering,
        example_inputs=inputs,
    )
    path = graphcache.export(
        compiled,
        wanted.output,
        backend=wanted.backend,
        options=wanted.options,
        overwrite=wanted.overwrite,
    )
    for file in sorted(path.iterdir()):
        line = f"{file.stat().st_size:>14,} {file.name}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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


def parse_dtype(name: str) -> torch.dtype:
    """A floating-point dtype of torch, by name.

    Raises:
        GraphCacheError: If there is none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise GraphCacheError(f"{name!r} is no floating-point dtype of torch")
    return found


@dataclass(frozen=True)
class Generation:
    """What to generate.

    Attributes:
        engine: What `export_model` or `graphcache.export` wrote.
        model: Folder of the pipeline; its transformer is not read.
        output: Folder for the picture or the clip.
        request: What the pipeline is asked for; digits of the moving-digits model.
        component: Which transformer the engine stands for.
    """

    engine: Path
    model: Path
    output: Path
    request: Request = field(default_factory=Request)
    component: str = folders.TRANSFORMER


def run_engine(wanted: Generation, console: Console) -> Path:
    """Generate with an engine; returns the picture or clip that was written.

    Args:
        wanted: What to generate.
        console: Where the statistics are printed; progress goes to standard error.

    Raises:
        GraphCacheError: If the engine or the model cannot be loaded, or do not fit
            together.
    """
    table = wanted.model / "embeddings.safetensors"
    digits = table.is_file() and not folders.is_pipeline(wanted.model)
    made = _digits_pipeline(wanted) if digits else _pipeline(wanted)
    engine = graphcache.load(wanted.engine, scheduler=made.scheduler)
    pipe = folders.with_transformer(made, wanted.component, engine)
    given = (
        _digits(wanted.request, engine, table)
        if digits
        else folders.arguments(made, wanted.request)
    )
    started = time.perf_counter()
    output = folders.generate(pipe, given)
    seconds = time.perf_counter() - started
    path = save_output(output, wanted.output)
    for line in (str(engine.cache_stats), f"{seconds:.1f} s; written to {path}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return path


def _pipeline(wanted: Generation) -> Any:
    if folders.is_pipeline(wanted.model) and not wanted.request.prompts:
        raise GraphCacheError("give a prompt for each picture or clip")
    return folders.load_pipeline(wanted.model, without=wanted.component)


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


def _digits(request: Request, engine: nn.Module, file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    given = request.options
    if sizes := {"height", "width", "num_frames"} & given.keys():
        raise GraphCacheError(
            f"clips of this model have one size: leave out {', '.join(sorted(sizes))}"
        )
    table = load_file(file)["embeddings"]
    prompts = request.prompts or ("3",)
    count, empty = len(prompts), len(table) - 1
    known = {str(digit): digit for digit in range(empty)}
    if unknown := [prompt for prompt in prompts if prompt not in known]:
        raise GraphCacheError(
            f"this model draws the digits 0 to {empty - 1}, not {', '.join(unknown)}"
        )
    noise = torch.Generator().manual_seed(request.seed)
    return {
        **_DIGITS.options,
        **given,
        "prompt_embeds": table[[known[prompt] for prompt in prompts]],
        "negative_prompt_embeds": table[empty:].expand(count, -1, -1),
        "latents": torch.randn(count, *latent_shape(engine.config), generator=noise),
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "latent",
    }
