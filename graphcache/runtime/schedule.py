"""An attached scheduler's timesteps and noise levels, on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from graphcache.errors import PolicyError
from graphcache.runtime.progress import FULL
from graphcache.runtime.stats import Statistics

_NONE = SimpleNamespace(timesteps=None)
"""What stands for no scheduler."""

# Pipelines may round the timestep to bfloat16, which keeps eight bits of it.
_ROUNDING = 2.0**-8


@dataclass(frozen=True)
class Place:
    """Where in a schedule a call is, as far as that is known.

    Attributes:
        position: Index in the schedule.
        count: Steps of the schedule.
        sigma: Noise level.
    """

    position: int | None = None
    count: int | None = None
    sigma: float | None = None


class Schedule:
    """A scheduler's timesteps, read once a generation.

    Args:
        scheduler: Anything with ``timesteps``, a tensor made anew for a generation; or
            a function without arguments that returns the scheduler of now, or None.
        stats: Where reads are counted.

    Raises:
        PolicyError: If the scheduler has no timesteps.
    """

    def __init__(self, scheduler: Any, stats: Statistics) -> None:
        self._follow: Callable[[], Any] | None = None
        if callable(scheduler) and not hasattr(scheduler, "timesteps"):
            self._follow = scheduler
            scheduler = scheduler() or _NONE
        if not hasattr(scheduler, "timesteps"):
            raise PolicyError(
                f"{type(scheduler).__name__} has no timesteps: scheduler= takes the "
                "scheduler of the pipeline, or a function that returns it"
            )
        self.scheduler = scheduler
        self.stats = stats
        self._source: Any = None
        self._values: list[float] = []
        self._sigmas: list[float] = []
        self._positions: dict[float, int] = {}
        self._begin: int | None = None

    @property
    def counts(self) -> bool:
        """Whether the scheduler itself counts its steps."""
        return hasattr(self.scheduler, "step_index")

    def __len__(self) -> int:
        """How many calls a loop over all of it makes."""
        return len(self._values)

    def refresh(self) -> bool:
        """Read the timesteps if they were made anew; whether a generation began."""
        if self._follow is not None:
            self.scheduler = self._follow() or _NONE
        source = self.scheduler.timesteps
        if source is self._source:
            return False
        started = self._source is not None
        self._source = source
        self._values = self._read(source)
        self._sigmas = self._read(getattr(self.scheduler, "sigmas", None))
        self._begin = None
        config = getattr(self.scheduler, "config", None)
        if getattr(config, "invert_sigmas", False):
            # Such a scheduler counts up to 1000 and 1, where no noise is left.
            self._values = [FULL - value for value in self._values]
            self._sigmas = [1.0 - value for value in self._sigmas]
        pairs = list(enumerate(self._values))
        self._positions = {value: position for position, value in reversed(pairs)}
        return started

    def counted(self, timestep: Callable[[], float | None]) -> int:
        """The position by the scheduler's own count.

        Args:
            timestep: The call's own timestep, asked once a generation, and only where
                nobody told the scheduler at which step the loop begins.
        """
        index = self.scheduler.step_index
        if index is None:
            index = getattr(self.scheduler, "begin_index", None)
        if index is not None:
            return int(index)
        if self._begin is None:
            self._begin = self.find(timestep()) or 0
        return self._begin

    def find(self, timestep: float | None) -> int | None:
        """The first position of a timestep; 0 for None, and None for one not in it."""
        if timestep is None:
            return 0
        if timestep in self._positions:
            return self._positions[timestep]
        near = min(self._values, key=lambda value: abs(value - timestep), default=None)
        if near is None or abs(near - timestep) > _ROUNDING * abs(timestep):
            return None
        return self._positions[near]

    def timestep(self, position: int | None) -> float | None:
        """The timestep at a position; None outside of the schedule."""
        return _at(self._values, position)

    def ahead(self, position: int | None) -> Sequence[float]:
        """The timesteps from a position on; empty if the position is not known."""
        return () if position is None else self._values[position:]

    def place(self, position: int | None) -> Place:
        """What is known of a position."""
        return Place(position, len(self) or None, _at(self._sigmas, position))

    def _read(self, values: Any) -> list[float]:
        if values is None:
            return []
        tensor = torch.as_tensor(values)
        self.stats.device_reads += tensor.device.type != "cpu"
        return [float(value) for value in tensor.tolist()]


def _at(values: list[float], position: int | None) -> float | None:
    if position is None or not 0 <= position < len(values):
        return None
    return values[position]
