"""The drop-in: the module itself, with another forward.

`compiled_module` returns an instance of a new subclass of the module's own class that
shares the module's ``__dict__``. Parameters, submodules, config and methods are
therefore the module's own, in both directions; only the forward and what concerns the
cache differ. The original instance keeps working, uncached.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn

from graphcache.errors import GraphCacheError
from graphcache.runtime.clock import StepContext
from graphcache.runtime.instances import bare, instance_of
from graphcache.runtime.runner import Runner
from graphcache.runtime.stats import Statistics


class CompiledModule(nn.Module):
    """What `graphcache.compile` adds to the module's class."""

    _graphcache_runner: ClassVar[Runner]
    _graphcache_remake: ClassVar[staticmethod[[nn.Module], nn.Module]]

    @property
    def cache_stats(self) -> Statistics:
        """What happened at run time so far."""
        runner = self._graphcache_runner
        runner.clock.measure()
        return runner.stats

    @property
    def is_cache_enabled(self) -> bool:
        """True: the cache is part of the graph."""
        return True

    def enable_cache(self, config: Any) -> None:
        """Refuse: the policy was given to `graphcache.compile`."""
        raise GraphCacheError(
            "this module is compiled with a cache policy already: compile the original "
            f"module with {type(config).__name__} instead of enabling hooks on it"
        )

    def disable_cache(self) -> None:
        """Refuse: the cache is part of the graph."""
        raise GraphCacheError(
            "the cache is part of the compiled graph: use the original module, which "
            "still runs uncached and shares its weights with this one"
        )

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
        return self._graphcache_remake(
            copy.deepcopy(bare(self._graphcache_runner.module), memo)
        )


def compiled_module(
    module: nn.Module, runner: Runner, remake: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A drop-in for `module` whose forward is the runner.

    Args:
        module: The original.
        runner: Runs its calls.
        remake: Compiles a copy of the original in the same way.
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
