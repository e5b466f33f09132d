"""Whole pipelines of diffusers: which of their parts are compiled, and what of them.

Nothing here imports diffusers. A part is a transformer by its class, whatever it is
called in the pipeline.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from graphcache.errors import CaptureError, GraphCacheError, PolicyError
from graphcache.policy.configs import is_data
from graphcache.runtime.controls import CacheControls
from graphcache.runtime.following import PipelineClock
from graphcache.runtime.module import CompiledModule
from graphcache.runtime.offloading import unwrap_to

_PIPELINES = ("DiffusionPipeline", "ModularPipeline")
_TRANSFORMERS = "diffusers.models.transformers."
_CONTROLNETS = "diffusers.models.controlnets."
_UNETS = "diffusers.models.unets."
_TIE = "_graphcache_tie"

Make = Callable[[nn.Module, object, PipelineClock | None], nn.Module]
"""Compiles one module by its config, following a pipeline."""


class Tie:
    """What ties compiled transformers to the pipeline that holds it.

    It is an attribute of the pipeline, so that it is pickled with it, and then tells
    the clocks of the transformers which pipeline they belong to.
    """

    def __init__(self, pipe: Any, clocks: Mapping[str, PipelineClock]) -> None:
        self.clocks = dict(clocks)
        self._first = next(iter(self.clocks.values()), PipelineClock(pipe))

    def __getstate__(self) -> dict[str, Any]:
        return {"pipe": self._first.pipe, "clocks": self.clocks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["pipe"], state["clocks"])  # type: ignore[misc]
        for clock in self.clocks.values():
            if state["pipe"] is not None:
                clock.attach(state["pipe"])


def is_pipeline(candidate: object) -> bool:
    """Whether it is a pipeline of diffusers, modular or not."""
    return any(
        kind.__name__ in _PIPELINES and kind.__module__.startswith("diffusers.")
        for kind in type(candidate).__mro__
    )


def is_transformer(candidate: object) -> bool:
    """Whether it is a transformer of diffusers, or takes diffusers' caches.

    A ControlNet is none: it has a pass of its own at every step, which the transformer
    reads.
    """
    if not isinstance(candidate, nn.Module):
        return False
    kinds = type(candidate).__mro__
    if any(kind.__module__.startswith(_CONTROLNETS) for kind in kinds):
        return False
    return any(
        kind.__module__.startswith(_TRANSFORMERS) or kind.__name__ == "CacheMixin"
        for kind in kinds
    )


def compile_pipeline(
    pipe: Any, config: object, make: Make, *, follow: bool = True
) -> None:
    """Put compiled modules in the places of a pipeline's transformers.

    Args:
        pipe: A pipeline of diffusers.
        config: One for every transformer, or a mapping with one by component name,
            which compiles those alone.
        make: Compiles one of them.
        follow: Whether they follow the pipeline's scheduler.

    Raises:
        CaptureError: If the pipeline has no transformer, or one is compiled already.
        PolicyError: If `config` names what is no module of the pipeline.
        GraphCacheError: Whatever `make` raises. The pipeline is as it was then.
    """
    wanted = _wanted(pipe, config)
    clocks: dict[str, PipelineClock] = {}
    made: dict[int, nn.Module] = {}
    for name, (module, own) in wanted.items():
        if id(module) not in made:
            clock = PipelineClock(pipe, _scheduler_name(pipe, name)) if follow else None
            made[id(module)] = make(module, own, clock)
            if clock is not None:
                clocks[name] = clock
    _replace(pipe, {name: made[id(module)] for name, (module, _) in wanted.items()})
    setattr(pipe, _TIE, Tie(pipe, clocks))


def disable(target: Any) -> Any:
    """Give the original back.

    Args:
        target: A pipeline, or a module that `graphcache.compile` returned.

    Returns:
        The pipeline, with the transformers it had before it was compiled; or the module
        that was compiled, the very object.

    Raises:
        GraphCacheError: If nothing of it is compiled, or the forward of a compiled
            module was replaced since.
    """
    if isinstance(target, CompiledModule):
        return _original(target)
    found = _compiled(target) if is_pipeline(target) else {}
    if not found:
        raise GraphCacheError(
            f"nothing of this {type(target).__name__} is compiled: disable takes what "
            "graphcache.compile returned"
        )
    _replace(target, {name: _original(module) for name, module in found.items()})
    vars(target).pop(_TIE, None)
    return target


def summary(target: Any) -> str:
    """What was computed and reused by each transformer of a pipeline, as text.

    Args:
        target: A pipeline, or a module with a cache.

    Raises:
        GraphCacheError: If it has no transformer.
    """
    if isinstance(target, CacheControls):
        return f"{type(target).__name__}\n{_statistics(target)}"
    if not is_pipeline(target):
        raise GraphCacheError(
            f"{type(target).__name__} is neither a pipeline of diffusers nor compiled"
        )
    lines = [type(target).__name__]
    for names, module in _distinct(target):
        if isinstance(module, CacheControls) or is_transformer(module):
            lines += [f"{names}: {type(module).__name__}", _statistics(module)]
    return "\n".join(lines)


def _statistics(module: Any) -> str:
    if not isinstance(module, CacheControls):
        return "  not compiled"
    state = "" if module.is_cache_enabled else "disabled\n"
    return textwrap.indent(f"{state}{module.cache_stats}", "  ")


def _distinct(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a pipeline, each once, with its names."""
    names: dict[int, list[str]] = {}
    modules = _modules(pipe)
    for name, module in modules.items():
        names.setdefault(id(module), []).append(name)
    for same in names.values():
        yield ", ".join(same), modules[same[0]]


def _modules(pipe: Any) -> dict[str, nn.Module]:
    parts = pipe.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module)}


def _compiled(pipe: Any) -> dict[str, CompiledModule]:
    parts = _modules(pipe).items()
    return {name: part for name, part in parts if isinstance(part, CompiledModule)}


def _wanted(pipe: Any, config: object) -> dict[str, tuple[nn.Module, object]]:
    """The modules to compile, by component name, each with its config."""
    _refuse_combined(pipe)
    modules = _modules(pipe)
    if isinstance(config, Mapping) and not is_data(config):
        _refuse_unknown(pipe, config, modules)
        wanted = {name: (modules[name], own) for name, own in config.items()}
    else:
        wanted = {
            name: (part, config)
            for name, part in modules.items()
            if is_transformer(part) or isinstance(part, CacheControls)
        }
    if not wanted:
        raise CaptureError(_no_transformer(pipe, modules))
    for name, (module, _) in wanted.items():
        _refuse_compiled(pipe, name, module)
    _refuse_conflict(pipe, wanted)
    return wanted


def _refuse_combined(pipe: Any) -> None:
    inner = [name for name, value in vars(pipe).items() if is_pipeline(value)]
    if inner:
        raise CaptureError(
            f"{type(pipe).__name__} runs pipelines of its own, which hold the modules: "
            f"compile those, {', '.join(f'pipe.{name}' for name in inner)}"
        )


def _refuse_unknown(
    pipe: Any, config: Mapping[Any, object], modules: Mapping[str, nn.Module]
) -> None:
    unknown = [repr(name) for name in config if name not in modules]
    if config and not unknown:
        return
    raise PolicyError(
        f"{type(pipe).__name__} has no module {', '.join(unknown) or 'to compile'}: a "
        "mapping gives a config for each module that is to be compiled, by its name. "
        f"The modules: {', '.join(modules) or 'none'}"
    )


def _refuse_compiled(pipe: Any, name: str, module: nn.Module) -> None:
    if isinstance(module, CompiledModule):
        raise CaptureError(
            f"{name} of this {type(pipe).__name__} is compiled by graphcache already: "
            "graphcache.disable(pipe) gives the original back, and "
            f"pipe.{name}.enable_cache(config) changes the policy"
        )
    if isinstance(module, CacheControls):
        raise CaptureError(
            f"{name} of this {type(pipe).__name__} is an engine, which has the policy "
            "that it was exported with: compile the model instead"
        )


def _no_transformer(pipe: Any, modules: Mapping[str, nn.Module]) -> str:
    unets = [
        f"{name} is a {type(part).__name__}"
        for name, part in modules.items()
        if any(kind.__module__.startswith(_UNETS) for kind in type(part).__mro__)
    ]
    if unets:
        return (
            f"{type(pipe).__name__} has no transformer: {', '.join(unets)}, and a UNet "
            "is no sequence of blocks whose results could be reused. graphcache "
            "compiles diffusion transformers"
        )
    parts = [f"{name} ({type(part).__name__})" for name, part in modules.items()]
    return (
        f"{type(pipe).__name__} has no transformer of diffusers. Its modules: "
        f"{', '.join(parts) or 'none'}. One of another library is compiled if it is "
        "named: graphcache.compile(pipe, {name: config})"
    )


def _refuse_conflict(pipe: Any, wanted: Mapping[str, tuple[nn.Module, object]]) -> None:
    """One module under two names has one config."""
    first: dict[int, str] = {}
    for name, (module, config) in wanted.items():
        other = first.setdefault(id(module), name)
        if wanted[other][1] is not config:
            raise PolicyError(
                f"{other} and {name} of this {type(pipe).__name__} are one object, and "
                "are given two configs: give one of them"
            )


def _scheduler_name(pipe: Any, component: str) -> str:
    """The component that is the scheduler of another: ``prior_scheduler`` of prior."""
    for prefix in (component, component.partition("_")[0]):
        if getattr(pipe, f"{prefix}_scheduler", None) is not None:
            return f"{prefix}_scheduler"
    return "scheduler"


def _replace(pipe: Any, modules: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of a pipeline's, and make its hooks theirs."""
    for name, module in modules.items():
        old = getattr(pipe, name)
        for hook in getattr(pipe, "_all_hooks", ()):
            if getattr(hook, "model", None) is old:
                hook.model = module
        if hasattr(pipe, "update_components"):
            pipe.update_components(**{name: module})
        else:
            setattr(pipe, name, module)


def _original(compiled: CompiledModule) -> nn.Module:
    runner = compiled._graphcache_runner
    unwrap_to(runner.module, compiled)
    runner.reset()
    return runner.module
