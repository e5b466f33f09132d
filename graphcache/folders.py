"""Folders of pipelines: loaded, called, and the first call of their transformer noted.

A folder is what ``save_pretrained`` of a pipeline of diffusers wrote. What the
transformer is called with is not guessed: the pipeline runs, and stops at the first
call.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphcache.errors import GraphCacheError
from graphcache.inspection import example_inputs, load_transformer

INDEX = "model_index.json"
TRANSFORMER = "transformer"
_BATCH = 2


@dataclass(frozen=True)
class Request:
    """What a pipeline is asked for; None leaves it the pipeline's own default.

    Attributes:
        prompts: One per picture or clip; for a model of classes their names or numbers.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
        frames: Of each clip.
        steps: Denoising steps.
        guidance: Scale of guidance.
        seed: Seed of the initial noise.
    """

    prompts: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 1

    @property
    def options(self) -> dict[str, int | float]:
        """What was given, by the names that pipelines have for it."""
        named = {
            "height": self.height,
            "width": self.width,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Source:
    """A transformer on disk, and how it is called.

    Attributes:
        path: Folder of a pipeline, of a transformer, or one with ``transformer/``.
        request: What the pipeline is asked for.
        component: Which transformer of the pipeline.
        batch: Clips in one call, for the folder of a transformer; None for two.
        device: Where it runs.
        dtype: Of its weights; None for that of the files.
    """

    path: Path
    request: Request = field(default_factory=Request)
    component: str = TRANSFORMER
    batch: int | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None

    def load(self) -> tuple[nn.Module, dict[str, Any]]:
        """The transformer, and the keyword arguments of one of its calls.

        Raises:
            GraphCacheError: If a part of it is missing or cannot be loaded, or the
                pipeline does not take what it is asked for.
        """
        if is_pipeline(self.path):
            return self._from_pipeline()
        if self.request.prompts or self.request.options:
            raise GraphCacheError(
                f"{self.path} has no {INDEX}: prompts, sizes and steps are for the "
                "folder that save_pretrained of a whole pipeline wrote"
            )
        nested = self.path / TRANSFORMER
        folder = nested if nested.is_dir() else self.path
        module = load_transformer(folder, self.dtype).to(self.device)
        inputs = example_inputs(module, self.batch or _BATCH)
        return module, {name: _moved(x, self.device) for name, x in inputs.items()}

    def _from_pipeline(self) -> tuple[nn.Module, dict[str, Any]]:
        if self.batch is not None:
            raise GraphCacheError(
                "the batch of a pipeline is that of its prompts: give one prompt for "
                "each picture or clip instead of --batch"
            )
        pipe = load_pipeline(self.path, self.dtype).to(self.device)
        module = transformer_of(pipe, self.component)
        pipe.set_progress_bar_config(disable=True)
        inputs = record_call(pipe, module, arguments(pipe, self.request))
        return module, inputs


def is_pipeline(path: Path) -> bool:
    """Whether ``save_pretrained`` of a pipeline wrote the folder."""
    return (path / INDEX).is_file()


def load_pipeline(
    path: Path, dtype: torch.dtype | None = None, without: str | None = None
) -> Any:
    """Load a pipeline of diffusers from a folder; nothing is fetched or unpickled.

    Args:
        path: The folder.
        dtype: Of all weights; None for diffusers' default.
        without: The component that is not read.

    Raises:
        GraphCacheError: If the folder is none of a pipeline, or a component is missing
            or cannot be loaded; the message names it.
    """
    _check_index(path, without)
    loader = importlib.import_module("diffusers").DiffusionPipeline
    left_out = {} if without is None else {without: None}
    try:
        return loader.from_pretrained(
            str(path),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **left_out,
        )
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise GraphCacheError(f"diffusers cannot load {path}: {error}") from error


def _check_index(path: Path, without: str | None) -> None:
    """Raise unless every component that the index names has a folder."""
    if not is_pipeline(path):
        raise GraphCacheError(
            f"{path} has no {INDEX}: give the folder that save_pretrained of a "
            "diffusers pipeline wrote"
        )
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise GraphCacheError(f"{path / INDEX} is no JSON: {error}") from error
    kind = str(index.get("_class_name"))
    pipeline = getattr(importlib.import_module("diffusers"), kind, None)
    optional = getattr(pipeline, "_optional_components", [])
    for name, value in index.items():
        if not isinstance(value, list) or len(value) != 2 or name == without:
            continue
        if value[0] is None and name not in optional:
            raise GraphCacheError(
                f"{path} has no {name}, which {kind} needs: save the pipeline whole"
            )
        if value[0] is not None and not (path / name).is_dir():
            raise GraphCacheError(
                f"{path} has no {name}/, and {INDEX} says that it holds the "
                f"pipeline's {value[1]}: save the pipeline whole"
            )


def transformer_of(pipe: Any, component: str) -> nn.Module:
    """A transformer of a pipeline.

    Raises:
        GraphCacheError: If it has none of that name.
    """
    found = pipe.components.get(component)
    if isinstance(found, nn.Module):
        return found.eval()
    modules = [n for n, part in pipe.components.items() if isinstance(part, nn.Module)]
    raise GraphCacheError(
        f"{type(pipe).__name__} has no module {component}: it has "
        f"{', '.join(sorted(modules))}. What is compiled is a diffusion transformer."
    )


def arguments(pipe: Any, request: Request) -> dict[str, Any]:
    """The keyword arguments of a call of a pipeline.

    Args:
        pipe: The pipeline.
        request: What it is asked for.

    Raises:
        GraphCacheError: If it does not take an option, needs what is not given, or
            has no part to read a prompt with.
    """
    name = type(pipe).__name__
    known = inspect.signature(type(pipe).__call__).parameters
    given = {**request.options, **_prompts(pipe, request, known)}
    for option in given:
        if option not in known:
            raise GraphCacheError(f"{name} takes no {option}: leave it out")
    needed = [
        entry.name
        for entry in list(known.values())[1:]
        if entry.default is entry.empty
        and entry.kind not in (entry.VAR_KEYWORD, entry.VAR_POSITIONAL)
        and entry.name not in given
    ]
    if needed:
        raise GraphCacheError(
            f"{name} needs {', '.join(needed)}, which the command line cannot give: "
            "call graphcache.compile and graphcache.export in Python"
        )
    generator = torch.Generator().manual_seed(request.seed)
    settings = {"generator": generator, "output_type": "np"}
    return given | {key: v for key, v in settings.items() if key in known}


def _prompts(
    pipe: Any, request: Request, known: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    if "prompt" in known:
        for part in ("tokenizer", "text_encoder"):
            if part in pipe.components and pipe.components[part] is None:
                raise GraphCacheError(
                    f"the pipeline has no {part}, and {type(pipe).__name__} reads its "
                    "prompt with it: save the pipeline whole"
                )
        return {"prompt": list(request.prompts or ("",))}
    if "class_labels" in known:
        return {"class_labels": [_label(pipe, x) for x in request.prompts or ("0",)]}
    return {"prompt": list(request.prompts)} if request.prompts else {}


def _label(pipe: Any, text: str) -> int:
    """The number of a class, by its number or its name."""
    if text.isdigit():
        return int(text)
    labels = getattr(pipe, "labels", None) or {}
    if text not in labels:
        raise GraphCacheError(
            f"the pipeline has no class {text!r}: give a number"
            + (f", or one of {', '.join(labels)}" if labels else "")
        )
    return int(labels[text])


class _Recorded(Exception):
    """The first call of the transformer, which is not made."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("the transformer was called")
        self.args_given, self.kwargs_given = args, kwargs


def record_call(
    pipe: Any, module: nn.Module, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a pipeline calls its transformer with first, by name.

    Args:
        pipe: The pipeline.
        module: Its transformer.
        given: Keyword arguments of the pipeline.

    Raises:
        GraphCacheError: If the pipeline refuses its arguments, or never calls it.
    """

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Recorded(args, kwargs)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        generate(pipe, given)
    except _Recorded as call:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*call.args_given, **call.kwargs_given)
        return _by_name(signature, bound.arguments)
    finally:
        handle.remove()
    raise GraphCacheError(
        f"{type(pipe).__name__} has not called the {type(module).__name__}"
    )


def _by_name(signature: inspect.Signature, bound: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in bound.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    return found


def generate(pipe: Any, given: Mapping[str, Any]) -> Any:
    """Call a pipeline.

    Raises:
        GraphCacheError: If it refuses its arguments.
    """
    try:
        with torch.no_grad():
            return pipe(**given)
    except (ValueError, TypeError) as error:
        raise GraphCacheError(f"{type(pipe).__name__}: {error}") from error


def with_transformer(pipe: Any, component: str, engine: nn.Module) -> Any:
    """The pipeline made anew with an engine in the place of a transformer.

    Made anew, and not changed: pipelines read the default size and other numbers from
    the config of their transformer when they are made.
    """
    known = inspect.signature(type(pipe).__init__).parameters
    settings = {k: v for k, v in pipe.config.items() if k in known}
    return type(pipe)(**{**settings, **pipe.components, component: engine})


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value.to(device)
