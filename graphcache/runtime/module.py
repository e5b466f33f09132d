"""The drop-in: the module itself, with another forward.

`compiled_module` returns an instance of a new subclass of the module's own class that
shares the module's ``__dict__``. Parameters, submodules, config and methods are
therefore the module's own, in both directions; only the forward, the hooks around it
and what concerns the cache differ. The original instance keeps working, uncached.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from graphcache.errors import GraphCacheError
from graphcache.policy import Configuration, configuration
from graphcache.runtime.controls import CacheControls
from graphcache.runtime.following import PipelineClock
from graphcache.runtime.instances import bare, instance_of
from graphcache.runtime.kinds import make_kind
from graphcache.runtime.offloading import wrap_as
from graphcache.runtime.runner import Runner


@dataclass(frozen=True)
class Recipe:
    """How a module was compiled, to compile a copy of it in the same way.

    Attributes:
        make: Compiles a module, called as ``make(module, config, scheduler=scheduler,
            **settings)``.
        config: What to cache.
        scheduler: The attached scheduler, what returns it, or None.
        settings: The other arguments.
    """

    make: Callable[..., nn.Module]
    config: object = None
    scheduler: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, module: nn.Module) -> nn.Module:
        """Compile a module."""
        return self.make(module, self.config, scheduler=self.scheduler, **self.settings)

    def check_portable(self, name: str) -> None:
        """Raise if the recipe cannot be pickled.

        Args:
            name: Of the module, for the message.

        Raises:
            GraphCacheError: Naming what cannot be.
        """
        values = {"config": self.config, **self.settings}
        for key, value in values.items():
            try:
                _DryPickler(io.BytesIO()).dump(value)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise GraphCacheError(
                    f"this compiled {name} cannot be pickled, because its {key} "
                    f"cannot ({error}). A function in it has to be one of a module, "
                    "no lambda. Or save the weights alone: save_pretrained(), or "
                    "state_dict()"
                ) from error


class _DryPickler(pickle.Pickler):
    """Pickles to see whether it can; modules, which are large, are taken to be fine."""

    def persistent_id(self, obj: Any) -> str | None:
        """A word in place of what is left out."""
        return "module" if isinstance(obj, nn.Module) else None


class CompiledModule(CacheControls, nn.Module):
    """What `graphcache.compile` adds to the module's class."""

    _graphcache_runner: ClassVar[Runner]
    _graphcache_recipe: ClassVar[Recipe]

    def enable_cache(self, config: Any = None) -> None:
        """Reuse again after `disable_cache`, or by another policy.

        The next call of every stream computes.

        Args:
            config: Another policy, as `graphcache.compile` takes it, which is compiled
                at the next call; None for the one it had.

        Raises:
            ValueError: If the cache is enabled, and no config is given.
            PolicyError: If `config` is unknown or malformed.
            BackendError: If the lowering cannot lower it.
        """
        runner = self._graphcache_runner
        if config is None:
            if self.is_cache_enabled:
                raise ValueError(
                    "the cache is enabled already: enable_cache(config) changes the "
                    "policy"
                )
            runner.enable()
            return
        runner.enable(followed(config, self._graphcache_recipe.scheduler))
        runner.config = config

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: Dynamo cannot compile what is compiled already."""
        raise GraphCacheError(
            "this module is compiled already: choose the compiler with "
            'graphcache.compile(..., backend="inductor", options={...})'
        )

    def __copy__(self) -> nn.Module:
        """A compiled module that shares weights and scheduler, with state of its own.

        As of any module, the copy has attributes of its own and shares their values.
        """
        recipe = self._recipe()
        return self._like(recipe.apply(bare(self._graphcache_runner.module)))

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A compiled copy with weights and state of its own.

        It follows the copy of the scheduler where that is copied in one go with it, as
        part of a pipeline. Copied alone, it follows none: nobody would step the copy.
        Nor does it ask a function of the user's, which asks the pipeline of before.
        """
        recipe = self._recipe()
        scheduler = _copied(recipe.scheduler, memo) if memo else None
        module = copy.deepcopy(bare(self._graphcache_runner.module), memo)
        return self._like(replace(recipe, scheduler=scheduler).apply(module))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle the original and how it was compiled; compile anew when loaded.

        Neither hooks nor a scheduler are pickled. A pipeline that was compiled as a
        whole is followed again once it is loaded.

        Raises:
            GraphCacheError: If the config or an option cannot be pickled.
        """
        runner, recipe = self._graphcache_runner, self._recipe()
        recipe.check_portable(type(runner.module).__name__)
        if not isinstance(recipe.scheduler, PipelineClock):
            recipe = replace(recipe, scheduler=None)
        state = dict(runner.thresholds), runner.enabled
        return _revived, (bare(runner.module), recipe, *state)

    def _recipe(self) -> Recipe:
        """How it was compiled, with the policy that it has now."""
        config = self._graphcache_runner.config
        recipe = self._graphcache_recipe
        return recipe if config is None else replace(recipe, config=config)

    def _like(self, twin: nn.Module) -> nn.Module:
        runner = self._graphcache_runner
        return _set(twin, runner.thresholds, runner.enabled)


def _copied(scheduler: Any, memo: dict[int, Any]) -> Any:
    if isinstance(scheduler, PipelineClock) or hasattr(scheduler, "timesteps"):
        return copy.deepcopy(scheduler, memo)
    return None


def _revived(
    module: nn.Module, recipe: Recipe, thresholds: Mapping[str, float], enabled: bool
) -> nn.Module:
    return _set(recipe.apply(module), thresholds, enabled)


def _set(twin: nn.Module, thresholds: Mapping[str, float], enabled: bool) -> nn.Module:
    if isinstance(twin, CompiledModule):
        twin.cache_thresholds.update(thresholds)
        twin._graphcache_runner.enabled = enabled
    return twin


def followed(config: object, scheduler: Any) -> Configuration:
    """A config, read; the pipeline that is followed says the timestep if it does not.

    Raises:
        PolicyError: If `config` is unknown or malformed.
    """
    wanted = configuration(config)
    if wanted.timestep_callback is None and isinstance(scheduler, PipelineClock):
        return replace(wanted, timestep_callback=scheduler.timestep)
    return wanted


def compiled_module(module: nn.Module, runner: Runner, recipe: Recipe) -> nn.Module:
    """A drop-in for `module` whose forward is the runner.

    Offloading that is around the module is around the drop-in as well.

    Args:
        module: The original, which is left as it is.
        runner: Runs its calls.
        recipe: Compiles a copy of the original in the same way.
    """
    original = type(module)

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return runner(args, kwargs)

    members = {"_graphcache_runner": runner, "_graphcache_recipe": recipe}
    kind = make_kind(original, CompiledModule, forward, members)
    compiled = instance_of(kind, module.__dict__)
    wrap_as(compiled, module)
    return compiled
