"""The front door: capture -> plan -> rewrite -> lower -> backend -> run."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from graphcache.backends.registry import get_backend
from graphcache.errors import BackendError, CaptureError
from graphcache.lowering import LOWERINGS, lower
from graphcache.policy import configuration
from graphcache.program import Program, segments
from graphcache.rewriting import cached_program, policies_of
from graphcache.runtime.compiling import Target
from graphcache.runtime.module import CompiledModule, compiled_module
from graphcache.runtime.runner import Runner
from graphcache.signature import CallSignature


def compile(
    module: nn.Module,
    config: object,
    *,
    backend: str = "inductor",
    lowering: str = "auto",
    scheduler: Any = None,
    options: Mapping[str, Any] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Compile a diffusion transformer for the loop it is called in.

    Args:
        module: The transformer, in eval mode and without hooks.
        config: A `graphcache.Policy`, a sequence of them, one of diffusers' cache
            configs, or the same as data: a dict, or the path of a JSON or YAML file.
        backend: ``"inductor"``, ``"tensorrt"``, ``"eager"`` or ``"reference"``.
        lowering: ``"specialize"`` (one straight-line graph per combination of the
            host's decisions), ``"split"`` (the same, cut where the graph decides),
            ``"conditional"`` (one graph with `torch.cond`), or ``"auto"``, which
            chooses by the policies and what the backend can take.
        scheduler: The pipeline's scheduler, if its timesteps are to drive the policy.
        options: The backend's options, such as Inductor's ``{"max_autotune": True}``.
        example_inputs: Keyword arguments of one call, to capture and compile now
            instead of at the first call.
        progress: Whether to show a progress bar while compiling; by default when the
            backend generates code.

    Returns:
        A drop-in for `module`: an instance of a subclass of its class that shares its
        parameters, submodules and attributes.

    Raises:
        PolicyError: If `config` is unknown or malformed, or matches nothing.
        BackendError: If the backend, the lowering or an option is unknown.
        CaptureError: If the module is in training mode, carries hooks, is compiled
            already, or cannot be captured.
    """
    wanted = configuration(config)
    chosen = get_backend(backend)
    if lowering not in LOWERINGS:
        raise BackendError(
            f"unknown lowering {lowering!r}: know {', '.join(LOWERINGS)}"
        )
    refuse_compiled(module)
    shown = chosen.capabilities.compiles if progress is None else progress
    target = Target(wanted, chosen, lowering, dict(options or {}), shown)
    runner = Runner(module, target, scheduler, wanted.timestep_callback)
    remake = functools.partial(
        compile,
        # As read: a file may be another by then.
        config=wanted,
        backend=backend,
        lowering=lowering,
        scheduler=scheduler,
        options=options,
        progress=progress,
    )
    compiled = compiled_module(module, runner, remake)
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
    if not isinstance(module, nn.Module):
        raise CaptureError(f"{type(module).__name__} is no nn.Module")
    if isinstance(module, CompiledModule):
        raise CaptureError("this module is compiled by graphcache already")
    if hasattr(module, "_orig_mod"):
        raise CaptureError(
            "this module is wrapped by torch.compile: pass the module inside it, "
            "module._orig_mod; graphcache calls the compiler itself"
        )
