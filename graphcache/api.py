"""The front door: capture -> plan -> rewrite -> lower -> backend -> run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, TypeVar, overload

from torch import nn

from graphcache.backends.registry import get_backend
from graphcache.errors import BackendError, CaptureError
from graphcache.lowering import LOWERINGS, lower
from graphcache.pipelines import compile_pipeline, is_pipeline
from graphcache.policy import configuration
from graphcache.program import Program, segments
from graphcache.rewriting import cached_program, policies_of
from graphcache.runtime.compiling import Target
from graphcache.runtime.following import PipelineClock
from graphcache.runtime.module import (
    CompiledModule,
    Recipe,
    compiled_module,
    followed,
)
from graphcache.runtime.runner import Runner
from graphcache.signature import CallSignature

Pipeline = TypeVar("Pipeline")


@overload
def compile(
    target: nn.Module,
    config: object,
    *,
    backend: str = "inductor",
    lowering: str = "auto",
    scheduler: Any = None,
    options: Mapping[str, Any] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> nn.Module: ...


@overload
def compile(
    target: Pipeline,
    config: object,
    *,
    backend: str = "inductor",
    lowering: str = "auto",
    scheduler: Any = None,
    options: Mapping[str, Any] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Pipeline: ...


def compile(
    target: Any,
    config: object,
    *,
    backend: str = "inductor",
    lowering: str = "auto",
    scheduler: Any = None,
    options: Mapping[str, Any] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Any:
    """Compile a pipeline, or a diffusion transformer, for the loop it is called in.

    Of a pipeline all transformers are compiled, told by their classes. They follow the
    pipeline's scheduler, also when it is replaced, and its `current_timestep` where the
    config says no timestep.

    Args:
        target: A pipeline of diffusers, or a transformer, in eval mode. accelerate's
            model offloading may be on; other hooks may not.
        config: A `graphcache.Policy`, a sequence of them, one of diffusers' cache
            configs, or the same as data: a dict, or the path of a JSON or YAML file.
            For a pipeline it may be a mapping with one by component name, such as
            ``{"transformer": ..., "transformer_2": ...}``, which compiles those
            components alone.
        backend: ``"inductor"``, ``"tensorrt"``, ``"eager"`` or ``"reference"``.
        lowering: ``"specialize"`` (one straight-line graph per combination of the
            host's decisions), ``"split"`` (the same, cut where the graph decides),
            ``"conditional"`` (one graph with `torch.cond`), or ``"auto"``, which
            chooses by the policies and what the backend can take.
        scheduler: The scheduler whose timesteps are to drive the policy, or a function
            that returns it. A pipeline's own is taken if none is given.
        options: The backend's options, such as Inductor's ``{"max_autotune": True}``.
        example_inputs: Keyword arguments of one call of a transformer, to capture and
            compile it now instead of at the first call.
        progress: Whether to show a progress bar while compiling; by default when the
            backend generates code.

    Returns:
        The pipeline itself; or a drop-in for the module: an instance of a subclass of
        its class that shares its parameters, submodules and attributes.
        `graphcache.disable` undoes either.

    Raises:
        PolicyError: If `config` is unknown or malformed, matches nothing, or names a
            component that is no module.
        BackendError: If the backend, the lowering or an option is unknown.
        CaptureError: If there is no transformer; if one is in training mode, carries
            hooks, is compiled already, or cannot be captured.
    """
    settings = {
        "backend": backend,
        "lowering": lowering,
        "options": options,
        "progress": progress,
    }
    if not is_pipeline(target):
        recipe = Recipe(compile, config, scheduler, settings)
        return _compile_module(target, recipe, example_inputs)
    if example_inputs is not None:
        raise CaptureError(
            "example_inputs= are those of one module, and this is a pipeline: leave "
            "them out, or compile pipe.transformer with them"
        )

    def make(module: nn.Module, own: object, clock: PipelineClock | None) -> nn.Module:
        recipe = Recipe(compile, own, scheduler if clock is None else clock, settings)
        return _compile_module(module, recipe)

    compile_pipeline(target, config, make, follow=scheduler is None)
    return target


def _compile_module(
    module: nn.Module, recipe: Recipe, example_inputs: Mapping[str, Any] | None = None
) -> nn.Module:
    """Compile one module as a recipe says."""
    settings, scheduler = recipe.settings, recipe.scheduler
    if isinstance(recipe.config, (str, PathLike, Mapping)):
        # As read: by the time of a copy, the file may be another.
        recipe = replace(recipe, config=configuration(recipe.config))
    wanted = followed(recipe.config, scheduler)
    backend, lowering = get_backend(settings["backend"]), settings["lowering"]
    if lowering not in LOWERINGS:
        raise BackendError(
            f"unknown lowering {lowering!r}: know {', '.join(LOWERINGS)}"
        )
    refuse_compiled(module)
    shown = settings["progress"]
    if shown is None:
        shown = backend.capabilities.compiles
    target = Target(wanted, backend, lowering, dict(settings["options"] or {}), shown)
    runner = Runner(module, target, scheduler, wanted.timestep_callback)
    compiled = compiled_module(module, runner, recipe)
    if example_inputs is not None:
        runner.prepare((), dict(example_inputs))
    return compiled


def trace(module: nn.Module, config: object, /, *args: Any, **kwargs: Any) -> Program:
    """The cached program of one call: what `compile` would compile, as text and data.

    ``print(graphcache.trace(module, config, **inputs))`` shows the gates.

    Args:
        module: The transformer, in eval mode.
        config: As for `compile`.
        *args: Positional arguments of the call.
        **kwargs: Keyword arguments of the call.

    Raises:
        PolicyError: If `config` is unknown, malformed or matches nothing.
        CaptureError: If the module cannot be captured.
    """
    wanted = configuration(config)
    refuse_compiled(module)
    call = CallSignature(module.forward).bind(args, kwargs)
    return cached_program(module, call, wanted).program


def variants(
    program: Program, config: object, lowering: str = "auto"
) -> Sequence[Program]:
    """The lowered programs of a cached one, all-compute first.

    Where the graph takes decisions, each is cut into its segments: the head, then what
    follows if the regions are computed, then what follows if they are not.

    Args:
        program: What `trace` returned.
        config: What it was traced with.
        lowering: As for `compile`.
    """
    policies = policies_of(program, configuration(config))
    found = {
        id(part): part
        for tree in lower(program, policies, lowering).routes.values()
        for part in segments(tree)
    }
    return tuple(found.values())


def refuse_compiled(module: nn.Module) -> None:
    """Refuse what is no module, or compiled already.

    Raises:
        CaptureError: With what to pass instead.
    """
    if is_pipeline(module):
        raise CaptureError(
            f"{type(module).__name__} is a pipeline: pass its transformer, "
            "pipe.transformer"
        )
    if not isinstance(module, nn.Module):
        raise CaptureError(
            f"{type(module).__name__} is no nn.Module, and no pipeline of diffusers"
        )
    if isinstance(module, CompiledModule):
        raise CaptureError("this module is compiled by graphcache already")
    if hasattr(module, "_orig_mod"):
        raise CaptureError(
            "this module is wrapped by torch.compile: pass the module inside it, "
            "module._orig_mod; graphcache calls the compiler itself"
        )
