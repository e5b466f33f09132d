"""Controls: what concerns the cache, on everything that runs loops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from graphcache.runtime.clock import StepContext
from graphcache.runtime.stats import Statistics
from graphcache.runtime.stepper import Stepper
from graphcache.runtime.thresholds import Thresholds


class CacheControls:
    """Methods and properties over the class's own stepper."""

    _graphcache_runner: ClassVar[Stepper]

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

    def disable_cache(self) -> None:
        """Compute everything from now on; the outputs are the module's own."""
        if not self.is_cache_enabled:
            warnings.warn("the cache is disabled already", stacklevel=2)
            return
        self._graphcache_runner.disable()

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
