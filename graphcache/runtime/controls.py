"""Controls: what concerns the cache, on everything that runs loops."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from graphcache.runtime.clock import StepContext
from graphcache.runtime.requests import Request, request
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
        """Start a new generation of the current request: the next calls compute."""
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
        clock = self._graphcache_runner.clock
        outer = clock.context
        clock.context = StepContext(name, **kwargs)
        try:
            yield
        except BaseException:
            clock.reset(early=True)
            raise
        finally:
            clock.context = outer

    def request(self, name: Hashable | None = None) -> Request:
        """A scope whose calls are one request: with streams and steps of their own.

        Without it, each thread is a request, and each task of asyncio. When the last
        scope of a name ends, what the request holds is freed.

        Args:
            name: Names the request; scopes of one name that are open at once are one.
                None is a request of its own.
        """
        return request(name, only=self._graphcache_runner.requests)
