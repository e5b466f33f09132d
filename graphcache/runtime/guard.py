"""Guard: what may stand between the calls of a module and its forwards.

torch.export traces through a hook once and keeps what it did that time. A hook that
casts the weights of a layer is known, and the graph holds its casts. A hook that a
guider puts on for one call makes that call run uncompiled. Every other hook is refused,
with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from graphcache.capture.casts import CASTING
from graphcache.errors import CaptureError
from graphcache.runtime.offloading import unwrapped

LISTENER = "graphcache"
"""What hears the contexts of a module, among its hooks; it replaces no forward."""

_GUIDING = (
    "AttentionProcessorSkipHook",
    "FeedForwardSkipHook",
    "TransformerBlockSkipHook",
    "SmoothedEnergyGuidanceHook",
)
"""diffusers' hooks that a guider puts on for one of its calls."""
_OFFLOADING = ("group_offloading", "lazy_prefetch", "layer_execution_tracker")
_PARALLEL = ("cp_input", "cp_output", "context_parallel", "tensor_parallel")
_OFFLOADED = (
    "its weights come to the device layer by layer while it runs, and a compiled step "
    "takes all of them at once. Compile a module that is not offloaded, and call "
    "enable_model_cpu_offload(), which moves the whole module, if memory is short"
)


def refuse_hooks(module: nn.Module, *, root: bool, casts: bool = True) -> None:
    """Raise if a hook stands in the module that no graph can hold.

    Args:
        module: The module to look at, with all its parts.
        root: Whether the module's own forward may be hooked: offloading hooks wrap
            the compiled module from outside, which is harmless.
        casts: Whether the graph can hold the casts of diffusers' layerwise casting.

    Raises:
        CaptureError: Naming the part, the hook, and what to do instead.
    """
    for path, part in module.named_modules():
        if part is not module:
            reason = _reason(part, casts)
        elif root:
            reason = _own_cache(part)
        else:
            # Offloading is put around what is compiled, not into it.
            reason = _reason(unwrapped(part), casts)
        if reason is not None:
            raise CaptureError(f"{path or type(part).__name__} {reason}")


def is_guided(module: nn.Module) -> bool:
    """Whether a guider has put hooks on parts of the module for the call to come."""
    return any(
        type(hook).__name__ in _GUIDING
        for part in module.modules()
        for hook in _hooks(part).values()
    )


def _hooks(part: nn.Module) -> dict[str, Any]:
    """diffusers' hooks on a part, by name, without the listener."""
    registry = part.__dict__.get("_diffusers_hook")
    hooks = getattr(registry, "hooks", {})
    return {name: hook for name, hook in hooks.items() if name != LISTENER}


def _reason(part: nn.Module, casts: bool) -> str | None:
    return next(_reasons(part, casts), None)


def _reasons(part: nn.Module, casts: bool) -> Iterator[str]:
    cache = _own_cache(part)
    if cache is not None:
        yield cache
    hooks = _hooks(part)
    for name, hook in hooks.items():
        if not (casts and type(hook).__name__ in CASTING):
            yield _about_hook(name, hook)
    if "_hf_hook" in part.__dict__:
        yield _about_accelerate(part._hf_hook)
    forward = part.__dict__.get("forward")
    replaced = getattr(forward, "__func__", None) is not type(part).forward
    if forward is not None and replaced and not hooks:
        yield (
            "has its forward replaced on the instance, which may do something else at "
            "each step: delete that attribute, or give the part a class of its own"
        )
    if part._forward_hooks or part._forward_pre_hooks:
        yield (
            "has a torch forward hook: export would bake in what it does at one step. "
            "Remove the hook before compiling"
        )
    if part.__dict__.get("_compiled_call_impl") is not None:
        yield (
            "has been compiled in place (compile_repeated_blocks() or .compile()), and "
            "graphcache calls the compiler itself: load the model again and give it to "
            "graphcache.compile as it is"
        )


def _own_cache(part: nn.Module) -> str | None:
    config = getattr(part, "_cache_config", None)
    if config is None:
        return None
    return (
        f"has a diffusers cache enabled ({type(config).__name__}): call "
        "disable_cache() first, and give the config to graphcache instead"
    )


def _about_hook(name: str, hook: Any) -> str:
    if name.startswith(_OFFLOADING):
        return f"is offloaded by groups ({name}): {_OFFLOADED}"
    if name.startswith(_PARALLEL):
        return (
            f"splits its inputs between devices ({name}): compile the module before "
            "it is made parallel, which a compiled module cannot be yet"
        )
    if type(hook).__name__ in _GUIDING:
        return (
            f"has a guider's hook ({name}): compile before the guider is prepared. The "
            "calls that it hooks run uncompiled, and the others are cached"
        )
    if type(hook).__name__ in CASTING:
        return (
            f"casts its weights at each call ({name}), which Dynamo cannot trace: use "
            "graphcache.compile, whose graph holds the casts"
        )
    return (
        f"has diffusers hooks ({name}): export would bake in what they do at one step. "
        "Remove them before compiling (for diffusers' caches: disable_cache(), and "
        "give the config to graphcache instead)"
    )


def _about_accelerate(hook: Any) -> str:
    kinds = {type(item).__name__ for item in getattr(hook, "hooks", (hook,))}
    if "AlignDevicesHook" in kinds:
        return f"is offloaded by accelerate, part by part: {_OFFLOADED}"
    return (
        f"has an accelerate hook ({', '.join(sorted(kinds))}): remove it with "
        "accelerate.hooks.remove_hook_from_module(module, recurse=True), compile, and "
        "put it around the compiled module"
    )
