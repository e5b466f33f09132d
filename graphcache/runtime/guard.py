"""What a capture took for granted of the module, and whether it still holds.

A captured program does not see a hook, a replaced layer or an adapter's new scale.
The cheap check runs at every call, the thorough one at the start of every generation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from graphcache.errors import CaptureError
from graphcache.runtime.instances import INSTANCE_HOOKS
from graphcache.runtime.offloading import unwrapped

LISTENER = "graphcache"
"""What hears the contexts of a module, among its hooks; it replaces no forward."""

Fingerprint = tuple[Any, ...]
_SCALARS = (bool, int, float, str, type(None))
_TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def refuse_hooks(module: nn.Module, *, root: bool) -> None:
    """Raise if anything stands between the module's calls and its forwards.

    torch.export would trace through a hook once and keep what it did that time.

    Args:
        module: The module to look at, with all its parts.
        root: Whether the module's own forward may be hooked: offloading hooks wrap
            the compiled module from outside, which is harmless.

    Raises:
        CaptureError: Naming the part and the hook.
    """
    for path, part in module.named_modules():
        if not path and root:
            continue
        # Offloading is put around what is compiled, not into it.
        hook = _hook_of(part if path else unwrapped(part))
        if hook is not None:
            raise CaptureError(
                f"{path or type(part).__name__} has {hook}: export would bake in what "
                "it does at one step. Remove it before compiling (for diffusers' "
                "caches: disable_cache(); give the config to graphcache instead)."
            )


def _hook_of(part: nn.Module) -> str | None:
    registry = getattr(part, "_diffusers_hook", None)
    names = [name for name in getattr(registry, "hooks", {}) if name != LISTENER]
    if names:
        return f"diffusers hooks ({', '.join(names)})"
    if getattr(part, "_cache_config", None) is not None:
        return f"a diffusers cache enabled ({type(part._cache_config).__name__})"
    if "_hf_hook" in part.__dict__:
        return "an accelerate hook"
    forward = part.__dict__.get("forward")
    if forward is not None and getattr(forward, "__func__", None) is not _own(part):
        return "its forward replaced"
    if any(getattr(part, name) for name in _TORCH_HOOKS):
        return "a torch forward hook"
    if part.__dict__.get("_compiled_call_impl") is not None:
        return "been compiled in place"
    return None


def _own(part: nn.Module) -> object:
    """The forward of the part's class; what removed hooks leave on the instance."""
    return type(part).forward


def fingerprint(module: nn.Module) -> Fingerprint:
    """Everything plain that the forward may depend on, besides tensor values.

    Types and identities of the parts, shapes, dtypes and devices of the weights, and
    attributes that are plain values (an adapter's scale, a switch).
    """
    return tuple(
        (path, id(part) if path else None, *_weights(part), *_plain(part))
        for path, part in module.named_modules()
    )


def _weights(part: nn.Module) -> Iterator[Any]:
    for group in (part._parameters, part._buffers):
        for name, value in group.items():
            if value is not None:
                yield name, value.shape, value.dtype, value.device


def _plain(part: nn.Module) -> Iterator[Any]:
    for name, value in part.__dict__.items():
        if name in INSTANCE_HOOKS or name.startswith("_"):
            continue
        if isinstance(value, _SCALARS):
            yield name, value
        elif isinstance(value, (dict, list, tuple)):
            yield name, repr(value) if _is_plain(value) else id(value)
        else:
            yield name, id(value)


def _is_plain(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return all(isinstance(item, _SCALARS) for item in items)


class StructureWatch:
    """Notices new hooks at every call: they change the size of a module's dict."""

    def __init__(self, module: nn.Module) -> None:
        parts = [part for path, part in module.named_modules() if path]
        self._dicts = [part.__dict__ for part in parts]
        self._hooks = [getattr(part, name) for part in parts for name in _TORCH_HOOKS]
        self._sizes = self._measure()

    def changed(self) -> bool:
        """Whether any part has gained or lost an attribute or a torch hook."""
        return self._measure() != self._sizes

    def _measure(self) -> list[int]:
        return [*map(len, self._dicts), *map(len, self._hooks)]
