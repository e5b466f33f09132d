"""The drop-in: the module itself, with another forward.

`compiled_module` returns an instance of a new subclass of the module's own class that
shares the module's ``__dict__``. Parameters, submodules, config and methods are
therefore the module's own, in both directions; only the forward and what concerns the
cache differ. The original instance keeps working, uncached.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from graphcache.errors import GraphCacheError
from graphcache.runtime.controls import CacheControls
from graphcache.runtime.instances import bare, instance_of
from graphcache.runtime.runner import Runner


class CompiledModule(CacheControls, nn.Module):
    """What `graphcache.compile` adds to the module's class."""

    _graphcache_runner: ClassVar[Runner]
    _graphcache_remake: ClassVar[staticmethod[..., nn.Module]]

    def enable_cache(self, config: Any = None) -> None:
        """Reuse again after `disable_cache`.

        Args:
            config: Another policy, as `graphcache.compile` takes it, which is compiled
                at the next call; None for the one it had.

        Raises:
            ValueError: If the cache is enabled.
            PolicyError: If `config` is unknown or malformed.
            BackendError: If the lowering cannot lower it.
        """
        if self.is_cache_enabled:
            raise ValueError(
                "the cache is enabled already: call disable_cache() first, then "
                "enable_cache() with another config"
            )
        self._graphcache_runner.enable(config)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: Dynamo cannot compile what is compiled already."""
        raise GraphCacheError(
            "this module is compiled already: choose the compiler with "
            'graphcache.compile(..., backend="inductor", options={...})'
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A compiled copy with weights and state of its own."""
        runner = self._graphcache_runner
        changed = {} if runner.config is None else {"config": runner.config}
        module = copy.deepcopy(bare(runner.module), memo)
        twin = self._graphcache_remake(module, **changed)
        if isinstance(twin, CompiledModule):
            twin.cache_thresholds.update(runner.thresholds)
            twin._graphcache_runner.enabled = runner.enabled
        return twin


def compiled_module(
    module: nn.Module, runner: Runner, remake: Callable[..., nn.Module]
) -> nn.Module:
    """A drop-in for `module` whose forward is the runner.

    Args:
        module: The original.
        runner: Runs its calls.
        remake: Compiles a copy of the original in the same way, with another
            ``config=`` if there is one.
    """
    original = type(module)

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return runner(args, kwargs)

    members = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "forward": forward,
        "_graphcache_runner": runner,
        "_graphcache_remake": staticmethod(remake),
    }
    kind = type(original.__name__, (CompiledModule, original), members)
    # Removed hooks leave the class's own forward on the instance, which would hide
    # the compiled one.
    module.__dict__.pop("forward", None)
    return instance_of(kind, module.__dict__)
