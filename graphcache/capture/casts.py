"""Casts: layers whose weights are stored in one precision and used in another.

diffusers' layerwise casting hooks the layers of a model: a layer's weights are cast
before its forward, and cast back after it. A trace of that would write to the weights.
While a module is traced, each such layer runs on casts of its weights instead. These
are nodes of the graph; the weights themselves stay as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

CASTING = ("LayerwiseCastingHook", "PeftInputAutocastDisableHook")
"""Classes of diffusers' hooks that the graph can hold."""
_WITHOUT_INPUT_CASTS = "PeftInputAutocastDisableHook"


@contextmanager
def casts(module: nn.Module) -> Iterator[None]:
    """Let layers that cast their weights do so in the graph, without their hooks.

    Args:
        module: The module that is traced.
    """
    placed: list[tuple[nn.Module, Any]] = []
    try:
        for part in module.modules():
            hooks = casting_hooks(part)
            if hooks:
                placed.append((part, part.__dict__["forward"]))
                part.__dict__["forward"] = _casting(part, hooks)
        yield
    finally:
        for part, forward in placed:
            part.__dict__["forward"] = forward


def casting_hooks(part: nn.Module) -> list[Any]:
    """The hooks of a part that cast, the outermost first."""
    registry: Any = part.__dict__.get("_diffusers_hook")
    hooks = [] if registry is None else list(registry.hooks.values())
    return [hook for hook in hooks if type(hook).__name__ in CASTING][::-1]


def _casting(part: nn.Module, hooks: list[Any]) -> Callable[..., Any]:
    dtypes = [hook.compute_dtype for hook in hooks if hasattr(hook, "compute_dtype")]
    plain = any(type(hook).__name__ == _WITHOUT_INPUT_CASTS for hook in hooks)
    own = type(part).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _without_input_casts(part, plain), _cast(part, dtypes):
            return own(part, *args, **kwargs)

    return forward


@contextmanager
def _cast(part: nn.Module, dtypes: list[torch.dtype]) -> Iterator[None]:
    """Casts in the places of the weights, as ``part.to(dtype)`` would cast them."""
    owners = [
        (group, name, weight)
        for child in part.modules()
        for group in (child._parameters, child._buffers)
        for name, weight in group.items()
        if weight is not None and weight.is_floating_point()
    ]
    entries: Any
    try:
        for entries, name, weight in owners:
            for dtype in dtypes:
                entries[name] = weight.to(dtype)
        yield
    finally:
        for entries, name, weight in owners:
            entries[name] = weight


@contextmanager
def _without_input_casts(part: nn.Module, plain: bool) -> Iterator[None]:
    if not plain:
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(part):
        yield
