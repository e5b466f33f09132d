"""The step clock: which stream a call belongs to, and at which step it is.

The timestep comes, in this order, from the caller's context, from the attached
scheduler, from the config's callback, and from the timestep argument itself. Only the
last reads a device tensor at every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.runtime.stats import Statistics
from graphcache.runtime.streams import Stream, held_bytes

TIMESTEP_ARGUMENTS = ("timestep", "timesteps")
_RISES_BEFORE_WARNING = 3


@dataclass(frozen=True)
class StepContext:
    """What `cache_context` says of the calls inside it.

    Attributes:
        name: Name of the stream, such as ``"cond"``.
        step_index: Index of the step in the loop.
        num_inference_steps: Steps of the loop.
        timestep: Timestep in the scheduler's units.
        sigma: Noise level.
    """

    name: str
    step_index: int | None = None
    num_inference_steps: int | None = None
    timestep: Any = None
    sigma: float | None = None


class Clock:
    """Tells streams and steps apart.

    Args:
        stats: Where reads and resets are counted.
        scheduler: A diffusers scheduler whose ``timesteps`` are read once a generation.
        callback: Returns the current timestep, or None when there is none.
    """

    def __init__(
        self,
        stats: Statistics,
        scheduler: Any = None,
        callback: Callable[[], Any] | None = None,
    ) -> None:
        self.stats = stats
        self.callback = callback
        self.context: StepContext | None = None
        self.streams: dict[str, Stream] = {}
        self._schedule = None if scheduler is None else Schedule(scheduler, stats)
        self._latest: float | None = None
        self._order = 0
        self._rises = 0

    def tick(self, argument: Any, scale: Callable[[], float]) -> Stream:
        """The stream of this call, with its timestep set; reset if the loop restarted.

        Args:
            argument: The call's timestep argument: a tensor, or None.
            scale: By what the argument is multiplied to be in the scheduler's units.

        Raises:
            PolicyError: If there is neither a context nor any timestep.
        """
        if self._schedule is not None and self._schedule.refresh():
            self.reset()
        timestep = self._timestep(argument, scale)
        if self.context is None:
            stream = self._stream_by_order(timestep)
        else:
            stream = self._stream_by_context(self.context, timestep)
        stream.timestep = timestep
        return stream

    def reset(self) -> None:
        """Reset every stream and forget the order of calls."""
        self.measure()
        for stream in self.streams.values():
            self.stats.resets += stream.index > 0
        self.streams.clear()
        self._latest = None
        self._order = 0

    def measure(self) -> None:
        """Note how many bytes of buffers are held."""
        live = (t for stream in self.streams.values() for t in stream.buffers.values())
        self.stats.peak_buffer_bytes = max(
            self.stats.peak_buffer_bytes, held_bytes(live)
        )

    def _restart(self, stream: Stream) -> None:
        self.measure()
        self.stats.resets += 1
        stream.reset()

    def _stream_by_context(
        self, context: StepContext, timestep: float | None
    ) -> Stream:
        stream = self._named(context.name)
        if stream.index and self._is_restart(stream, context.step_index, timestep):
            self._restart(stream)
        stream.step_index = context.step_index
        return stream

    def _is_restart(
        self, stream: Stream, step_index: int | None, timestep: float | None
    ) -> bool:
        """Whether the loop began again without saying so.

        The second call of a stream at its very first step is taken for a new
        generation after an aborted one: computing once more is the safe reading.
        """
        if step_index is not None and stream.step_index is not None:
            return step_index == 0 or step_index < stream.step_index
        if timestep is None or stream.timestep is None:
            return False
        rises = timestep > stream.timestep
        self._note_rise(rises)
        return rises or (stream.index == 1 and timestep == stream.timestep)

    def _stream_by_order(self, timestep: float | None) -> Stream:
        """Calls at one timestep belong to different streams, by their order."""
        if timestep is None:
            raise PolicyError(
                "steps cannot be told apart: there is no cache_context and no "
                "timestep. Call inside module.cache_context(name), or pass "
                "compile(scheduler=...), or set current_timestep_callback."
            )
        if self._latest is not None and timestep > self._latest:
            self._note_rise(True)
            self.reset()
        if timestep == self._latest:
            self._order += 1
        else:
            self._order = 0
        self._latest = timestep
        return self._named(f"call {self._order}")

    def _note_rise(self, rises: bool) -> None:
        self._rises = self._rises + 1 if rises else 0
        if self._rises == _RISES_BEFORE_WARNING:
            warnings.warn(
                "the timestep rose at three calls in a row, and each rise starts a new "
                "generation, so nothing is reused. If this loop counts up, pass a "
                "current_timestep_callback that counts down.",
                stacklevel=2,
            )

    def _timestep(self, argument: Any, scale: Callable[[], float]) -> float | None:
        context = self.context

        def read_argument() -> float | None:
            return None if argument is None else self._host(argument) * scale()

        if context is not None and context.timestep is not None:
            return self._host(context.timestep)
        if self._schedule is not None:
            stream = None if context is None else self._named(context.name)
            found = self._schedule.timestep(stream, read_argument)
            if found is not None:
                return found
        current = None if self.callback is None else self.callback()
        return read_argument() if current is None else self._host(current)

    def _named(self, name: str) -> Stream:
        return self.streams.setdefault(name, Stream(name))

    def _host(self, value: Any) -> float:
        if not isinstance(value, Tensor):
            return float(value)
        self.stats.device_reads += value.device.type != "cpu"
        return float(value.flatten()[0])


class Schedule:
    """A scheduler's timesteps on the host.

    Args:
        scheduler: Anything with ``timesteps``, a tensor made anew for a generation.
        stats: Where reads are counted.

    Raises:
        PolicyError: If the scheduler has no timesteps.
    """

    def __init__(self, scheduler: Any, stats: Statistics) -> None:
        if not hasattr(scheduler, "timesteps"):
            raise PolicyError(
                f"{type(scheduler).__name__} has no timesteps: scheduler= takes the "
                "scheduler of the pipeline"
            )
        self.scheduler = scheduler
        self.stats = stats
        self._source: Any = None
        self._values: list[float] = []

    def refresh(self) -> bool:
        """Read the timesteps if they were made anew; whether a generation began."""
        source = self.scheduler.timesteps
        if source is self._source:
            return False
        started = self._source is not None
        self._source = source
        self.stats.device_reads += source.device.type != "cpu"
        self._values = [float(value) for value in source.tolist()]
        return started

    def timestep(
        self, stream: Stream | None, argument: Callable[[], float | None]
    ) -> float | None:
        """The current timestep; None if the scheduler does not tell.

        Args:
            stream: Counts the calls for schedulers that do not count themselves.
            argument: Reads the timestep argument, once a generation, to find where
                in the schedule such a loop begins.
        """
        if hasattr(self.scheduler, "step_index"):
            position = self.scheduler.step_index
            if position is None:
                position = getattr(self.scheduler, "begin_index", None) or 0
        elif stream is None:
            return None
        else:
            if stream.index == 0:
                stream.begin = self._find(argument())
            if stream.begin is None:
                return None
            position = stream.begin + stream.index
        return self._values[position] if position < len(self._values) else None

    def _find(self, value: float | None) -> int | None:
        if value is None:
            return 0
        return next((i for i, known in enumerate(self._values) if known == value), None)
