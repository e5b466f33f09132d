"""An attached scheduler's timesteps and noise levels, on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphcache.errors import PolicyError
from graphcache.runtime.progress import FULL
from graphcache.runtime.stats import Statistics

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

    A scheduler that is attached and that nobody steps says nothing of the loop. It is
    given up for the generation when it stays at one step while the calls' own timestep
    moves.

    Attributes:
        followed: Whether the loop is taken to follow it.

    Args:
        scheduler: Anything with ``timesteps``, a tensor made anew for a generation; or
            a function without arguments that returns the current one, or None.
        stats: Where reads are counted.

    Raises:
        PolicyError: If the scheduler has no timesteps.
    """

    def __init__(self, scheduler: Any, stats: Statistics) -> None:
        self._given = scheduler
        self._asked = callable(scheduler) and not hasattr(scheduler, "timesteps")
        self.stats = stats
        self.scheduler: Any = None
        self._source: Any = None
        self._values: list[float] = []
        self._sigmas: list[float] = []
        self._positions: dict[float, int] = {}
        self._begin: int | None = None
        self._lost_at: tuple[Any, ...] | None = None
        self._argued: dict[int, float] = {}
        self._moved = False
        self._counted: int | None = None
        self._current()

    @property
    def followed(self) -> bool:
        """Whether there is a scheduler, and the loop is taken to follow it."""
        return bool(self._values) and self._lost_at is None

    @property
    def given_up(self) -> bool:
        """Whether the loop was seen to follow another one."""
        return self._lost_at is not None

    @property
    def counts(self) -> bool:
        """Whether the scheduler itself counts its steps."""
        return hasattr(self.scheduler, "step_index")

    def __len__(self) -> int:
        """How many calls a loop over all of it makes."""
        return len(self._values)

    @property
    def source(self) -> Any:
        """The scheduler's own timesteps, which each generation makes anew."""
        return self._source

    def refresh(self) -> bool:
        """Read the timesteps if they were made anew; whether a generation began."""
        scheduler = self._current()
        source = _timesteps(scheduler)
        if scheduler is self.scheduler and source is self._source:
            return False
        started = self._source is not None
        self.scheduler, self._source = scheduler, source
        self._values = self._read(source)
        self._sigmas = self._read(getattr(scheduler, "sigmas", None))
        self._trust()
        config = getattr(scheduler, "config", None)
        if getattr(config, "invert_sigmas", False):
            # Such a scheduler counts up to 1000 and 1, where no noise is left.
            self._values = [FULL - value for value in self._values]
            self._sigmas = [1.0 - value for value in self._sigmas]
        pairs = list(enumerate(self._values))
        self._positions = {value: position for position, value in reversed(pairs)}
        return started

    def give_up(self) -> None:
        """The loop follows another one."""
        self._lost_at = self._state()

    def renew(self) -> None:
        """The generation is over: believe it again if somebody stepped it since."""
        if self._lost_at is not None and self._state() != self._lost_at:
            self._trust()

    def counted(self, timestep: Callable[[], float | None]) -> int:
        """The position by the scheduler's own count.

        Args:
            timestep: The call's own timestep, asked once a generation, and only where
                nobody told the scheduler at which step the loop begins.
        """
        index = self.scheduler.step_index
        if index is None:
            index = getattr(self.scheduler, "begin_index", None)
        if index is None:
            if self._begin is None:
                own = timestep()
                self._begin = self.find(own) or 0
                if own is not None:
                    self._argued.setdefault(self._begin, own)
            index = self._begin
        self._moved |= self._counted is not None and index != self._counted
        self._counted = int(index)
        return self._counted

    def stands_still(self, timestep: Callable[[], float | None]) -> bool:
        """Whether the calls' own timestep moves while the scheduler's count does not.

        Args:
            timestep: The call's own timestep; asked only while the count has not moved
                since the timesteps were made.
        """
        if self._moved or self._counted is None:
            return False
        own = timestep()
        return own is not None and self._argued.setdefault(self._counted, own) != own

    def begin_at(self, timestep: Callable[[], float | None]) -> None:
        """Note the calls' own timestep at the first count of a generation.

        Args:
            timestep: The call's own timestep, where it can be had for nothing.
        """
        if self._counted is not None and not self._moved and not self._argued:
            own = timestep()
            if own is not None:
                self._argued[self._counted] = own

    def differs(self, timestep: float | None) -> bool:
        """Whether a call's own timestep is not the one that the count says."""
        known = self.timestep(self._counted)
        if timestep is None or known is None:
            return False
        near = _ROUNDING * abs(known)
        return min(abs(known - t) for t in (timestep, FULL - timestep)) > near

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

    def _current(self) -> Any:
        scheduler = self._given() if self._asked else self._given
        if scheduler is not None and not hasattr(scheduler, "timesteps"):
            raise PolicyError(
                f"{type(scheduler).__name__} has no timesteps: scheduler= takes the "
                "scheduler of the pipeline, or a function that returns it"
            )
        return scheduler

    def _trust(self) -> None:
        self._lost_at = self._begin = self._counted = None
        self._argued = {}
        self._moved = False

    def _state(self) -> tuple[Any, ...]:
        """What changes when somebody steps the scheduler."""
        return (
            getattr(self.scheduler, "step_index", None),
            getattr(self.scheduler, "begin_index", None),
        )

    def _read(self, values: Any) -> list[float]:
        if values is None:
            return []
        tensor = torch.as_tensor(values)
        self.stats.count(device_reads=tensor.device.type != "cpu")
        return [float(value) for value in tensor.tolist()]


def _timesteps(scheduler: Any) -> Any:
    """A scheduler's timesteps; None as long as nobody has set them."""
    if scheduler is None:
        return None
    timesteps = scheduler.timesteps
    trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    unset = getattr(scheduler, "num_inference_steps", None) is None
    if unset and timesteps is not None and len(timesteps) == trained:
        return None
    return timesteps


def _at(values: list[float], position: int | None) -> float | None:
    if position is None or not 0 <= position < len(values):
        return None
    return values[position]
