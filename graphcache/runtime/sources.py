"""Sources: what the clocks of a module ask for the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from graphcache.runtime.stats import Statistics
from graphcache.runtime.times import Reading, Time, read


class Sources:
    """What every clock of a module asks; each request has a clock.

    Attributes:
        stats: Where reads are counted.
        scheduler: As `Schedule` takes it; None if there is none.
        callback: Returns the current timestep, or None when there is none.
        contested: Whether more than one request is in the middle of a generation.
        live: The buffers of all requests; None if there is one alone.
    """

    def __init__(
        self,
        stats: Statistics,
        scheduler: Any = None,
        callback: Callable[[], Any] | None = None,
    ) -> None:
        self.stats = stats
        self.scheduler = scheduler
        self.callback = callback
        self.contested: Callable[[], bool] = lambda: False
        self.live: Callable[[], list[Tensor]] | None = None

    def read(self, value: Any) -> Reading:
        """Timesteps on the host."""
        if isinstance(value, Tensor):
            self.stats.count(device_reads=value.device.type != "cpu")
        return read(value)

    def own(self, argument: Any, scale: Callable[[], float]) -> Time:
        """The time by the callback, else by the argument of the module.

        Args:
            argument: A tensor, or None.
            scale: By what it is multiplied to be in the scheduler's units.
        """
        current = None if self.callback is None else self.callback()
        if current is not None:
            return Time(self.read(current).value)
        if argument is None:
            return Time(None)
        return Time.of_argument(self.read(argument).scaled(scale()))
