"""The drop-in: the module itself, with another forward.

`compiled_module` returns an instance of a new subclass of the module's own class that
shares the module's ``__dict__``. Parameters, submodules, config and methods are
therefore the module's own, in both directions; only the forward and what concerns the
cache differ. The original instance keeps working, uncached.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn

from graphcache.errors import GraphCacheError
from graphcache.runtime.clock import StepContext
from graphcache.runtime.instances import bare, instance_of
from graphcache.runtime.runner import Runner
from graphcache.runtime.stats import Statistics
from graphcache.runtime.thresholds import Thresholds


class CompiledModule(nn.Module):
    """What `graphcache.compile` adds to the module's class."""

    _graphcache_runner: ClassVar[Runner]
    _graphcache_remake: ClassVar[staticmethod[..., nn.Module]]

    @property
    def cache_stats(self) -> Statistics:
        """What happened at run time so far."""
        runner = self._graphcache_runner
        runner.clock.measure()
        return runner.stats

    @property
    def cache_thresholds(self) -> Thresholds:
        """The thresholds of dynamic policies, by policy name.

        They can be set at any time and hold from the next call on; nothing is compiled
        again.
        """
        return self._graphcache_runner.thresholds

    @property
    def is_cache_enabled(self) -> bool:
        """Whether anything is ever reused."""
        return self._graphcache_runner.enabled

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

    def disable_cache(self) -> None:
        """Compute everything from now on; the outputs are the module's own."""
        if not self.is_cache_enabled:
            warnings.warn("the cache is disabled already", stacklevel=2)
            return
        self._graphcache_runner.disable()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: Dynamo cannot compile what is compiled already."""
        raise GraphCacheError(
            "this module is compiled already: choose the compiler with "
            'graphcache.compile(..., backend="inductor", options={...})'
        )

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Start a new generation: the next call of every stream computes."""
        self._graphcache_runner.reset()

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Say which stream the calls inside belong to, and at which step they are.

        Args:
            name: Name of the stream, such as ``"cond"``.
            **kwargs: ``step_index``, ``num_inference_steps``, ``timestep``, ``sigma``.

        Raises:
            TypeError: For any other keyword.
        """
        runner = self._graphcache_runner
        outer = runner.clock.context
        runner.clock.context = StepContext(name, **kwargs)
        try:
            yield
        except BaseException:
            runner.reset()
            raise
        finally:
            runner.clock.context = outer

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
