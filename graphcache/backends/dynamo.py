"""The door of torch.compile: ``torch.compile(transformer, backend="graphcache")``.

The entry point in ``pyproject.toml`` makes Dynamo know the name, so that nothing has to
be imported. Dynamo traces the transformer and guards on what it took for granted; its
graph goes through the same passes as one of `graphcache.compile`, and the same host
loop runs it, inside the code that Dynamo generates::

    transformer = torch.compile(
        transformer, backend="graphcache", fullgraph=True, options={"config": config}
    )

The options are those of `graphcache.compile`: ``config``, and if wanted ``backend``,
``lowering``, ``scheduler``, ``options`` and ``progress``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import fx, nn

from graphcache.backends.registry import get_backend
from graphcache.capture.frame import TracedFrame
from graphcache.errors import BackendError, CaptureError
from graphcache.lowering import LOWERINGS
from graphcache.policy import configuration
from graphcache.runtime.compiling import Target
from graphcache.runtime.graphs import GraphStepper
from graphcache.runtime.guard import refuse_hooks
from graphcache.runtime.stats import Statistics
from graphcache.runtime.thresholds import Thresholds

_KNOWN = ("config", "backend", "lowering", "scheduler", "options", "progress")

# By module and options; they live as long as Dynamo keeps what they have compiled.
_steppers: WeakValueDictionary[tuple[int, int], GraphStepper] = WeakValueDictionary()


def graphcache_backend(
    graph: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any
) -> Callable[..., Any]:
    """Compile a graph of Dynamo's; what `torch.compile` calls.

    Args:
        graph: What Dynamo made of one call of the transformer.
        example_inputs: What it is called with.
        **kwargs: ``options``, as given to `torch.compile`.

    Raises:
        BackendError: If an option is unknown or missing, or the graph is not that of
            one whole call of a module.
        CaptureError: If the module is in training mode, hooked, or cannot be captured.
        PolicyError: If the config is unknown or malformed, or matches nothing.
    """
    options = _checked(kwargs)
    frame = TracedFrame.current()
    _refuse(frame)
    frame.pin()
    # Dynamo's own context would be taken for that of the tracers which follow.
    with torch._guards.tracing(None):
        return _stepper(frame.module, options).compile(graph, frame)


def statistics(module: nn.Module) -> Statistics:
    """What happened at run time so far, as `cache_stats` of a compiled module.

    Args:
        module: The transformer, or what `torch.compile` made of it.

    Raises:
        BackendError: If it was not called yet, or Dynamo has forgotten it.
    """
    stepper = _find(module)
    stepper.clock.measure()
    return stepper.stats


def thresholds(module: nn.Module) -> Thresholds:
    """The thresholds of dynamic policies, as `cache_thresholds` of a compiled module.

    They can be set at any time; nothing is compiled again.

    Args:
        module: The transformer, or what `torch.compile` made of it.

    Raises:
        BackendError: If it was not called yet, or Dynamo has forgotten it.
    """
    return _find(module).thresholds


def _find(module: nn.Module) -> GraphStepper:
    plain = getattr(module, "_orig_mod", module)
    found = [stepper for stepper in _steppers.values() if stepper.module() is plain]
    if not found:
        raise BackendError(
            f"nothing of this {type(plain).__name__} is compiled: torch.compile does "
            "it at the first call, and torch.compiler.reset() forgets it"
        )
    return found[-1]


def _checked(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    if "mode" in kwargs:
        raise BackendError(
            f"mode={kwargs['mode']!r} is one of Inductor's: give its options instead, "
            'options={"config": ..., "options": {"max_autotune": True}}'
        )
    options: Mapping[str, Any] = kwargs.get("options") or {}
    unknown = sorted({*kwargs} - {"options"}) + sorted({*options} - {*_KNOWN})
    if unknown:
        raise BackendError(
            f"backend graphcache has no option {', '.join(unknown)}: it knows "
            f"{', '.join(_KNOWN)}; those of the inner backend go into "
            'options={"options": {...}}'
        )
    if "config" not in options:
        raise BackendError(
            "backend graphcache needs a policy: torch.compile(..., "
            'backend="graphcache", options={"config": ...}), where config is one of '
            "diffusers' cache configs, a graphcache.Policy or several"
        )
    return options


def _stepper(module: nn.Module, options: Mapping[str, Any]) -> GraphStepper:
    # One call of torch.compile hands over the same object whatever it compiles.
    key = id(module), id(options)
    stepper = _steppers.get(key)
    if stepper is None or stepper.module() is not module:
        target = _target(options)
        stepper = GraphStepper(module, target, options.get("scheduler"), options)
        _steppers[key] = stepper
    return stepper


def _target(options: Mapping[str, Any]) -> Target:
    lowering = options.get("lowering", "auto")
    if lowering not in LOWERINGS:
        raise BackendError(
            f"unknown lowering {lowering!r}: know {', '.join(LOWERINGS)}"
        )
    backend = get_backend(options.get("backend", "inductor"))
    progress = options.get("progress")
    return Target(
        wanted=configuration(options["config"]),
        backend=backend,
        lowering=lowering,
        options=dict(options.get("options") or {}),
        progress=backend.capabilities.compiles if progress is None else progress,
    )


def _refuse(frame: TracedFrame) -> None:
    """Refuse what Dynamo would trace and a cached step cannot follow."""
    module = frame.module
    name = type(module).__name__
    if module.training:
        raise CaptureError(
            f"{name} is in training mode, and caching is for inference: call .eval() "
            "first"
        )
    tensors = (*module.parameters(), *frame.call.tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise CaptureError(
            "gradients are required at this call, and a cached step has none: call "
            "inside torch.no_grad() (diffusers' pipelines do), or requires_grad_(False)"
            " on the module and its inputs"
        )
    refuse_hooks(module, root=True, casts=False)
