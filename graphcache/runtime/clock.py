"""The step clock: which stream a call belongs to, and at which step it is.

The timestep comes, in this order, from the caller's context, from the attached
scheduler, from the config's callback, and from the timestep argument itself. Only the
last two may read a device tensor at every step. The place in the schedule comes from
the context, else from the attached scheduler.

Inside a context the context's name is the stream. Without one, calls at one step are
told apart by their order: the first is one stream, the second another. A step is one
position of an attached scheduler that counts its own steps, and one timestep otherwise.

A generation begins when the scheduler's timesteps are made anew, when the context's
step index or the scheduler's count falls, or when the timestep goes back: up in a loop
that counts down, down in one that counts up. A stream that is called twice at its very
first step begins again: computing once more is the safe reading.

What cannot be told, and how it is read:

* With neither contexts nor an attached scheduler, a loop that is aborted between two
  calls during its first step: the next loop's first calls look like further streams.
* With neither a step index nor an attached scheduler, a loop that is aborted between
  two calls and followed by one that begins at a lower timestep: it looks like the rest
  of the first.
* With neither of the two, a loop that counts up and begins at 50 or above: every rise
  looks like a new generation, and a warning says so.
* With neither of the two, and with no reset between, a loop of one step below 50 and
  then one that begins higher: they look like one loop that counts up.
* Without contexts, a solver that calls twice at one timestep (Heun), unless a scheduler
  that counts is attached: the second call looks like another stream. Nothing is shared
  wrongly, but each reuses its own calls only. So with PNDM, which repeats a timestep
  and does not count.
* Without contexts, more than eight calls at one step: nothing of them is reused.
* Without contexts, a reset between two calls of one step: the second call looks like
  the first stream.
* With contexts and an attached scheduler that does not count (DDIM), a stream that
  leaves out steps: its position is behind.
* An attached scheduler that counts and is not the one that the pipeline steps: every
  call is at the same step, and nothing is reused.

`_reset_stateful_cache()`, which diffusers' pipelines call when they end, and any
exception inside the module or a context begin a new generation whatever was told.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.runtime.progress import Move, Progress
from graphcache.runtime.schedule import Place, Schedule
from graphcache.runtime.stats import Statistics
from graphcache.runtime.streams import Stream, held_bytes

_RISES_BEFORE_WARNING = 3
_MOST_STREAMS = 8


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


class Time(NamedTuple):
    """A timestep, and whether it is the argument's, which may count up."""

    value: float | None
    argued: bool


Own = Callable[[], Time]
"""Asks the callback, else reads the argument, and that once a call at most."""


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
        # Of all calls without a context together.
        self._progress = Progress()
        self._order = 0

    def tick(
        self, argument: Any, scale: Callable[[], float], *, strict: bool = True
    ) -> Stream:
        """The stream of this call, with its step set; reset if the loop restarted.

        Args:
            argument: The call's timestep argument: a tensor, or None.
            scale: By what the argument is multiplied to be in the scheduler's units.
            strict: Whether it is an error if streams cannot be told apart; if not,
                every such call is the first of its own.

        Raises:
            PolicyError: If there is neither a context nor any timestep.
        """
        if self._schedule is not None and self._schedule.refresh():
            self.reset()
        own = cache(lambda: self._own(argument, scale))
        if self.context is None:
            return self._by_order(own, strict)
        return self._by_context(self.context, own)

    def ahead(self, stream: Stream) -> Sequence[float]:
        """The timesteps from the stream's to the loop's end; empty if not known."""
        if self._schedule is None:
            return ()
        return self._schedule.ahead(stream.scheduled)

    def reset(self) -> None:
        """Reset every stream and forget the order of calls."""
        self._drop_streams()
        self._progress = Progress()
        self._order = 0

    def measure(self) -> None:
        """Note how many bytes of buffers are held."""
        live = (t for stream in self.streams.values() for t in stream.buffers.values())
        self.stats.peak_buffer_bytes = max(
            self.stats.peak_buffer_bytes, held_bytes(live)
        )

    def _by_context(self, context: StepContext, own: Own) -> Stream:
        stream = self._named(context.name)
        progress = stream.progress
        position = self._position(stream, own)
        time = self._time(context, position, own)
        said = context.step_index
        first = progress.calls == 1
        move = progress.see(position if said is None else said, time.value)
        if move is Move.BACK or (move is Move.SAME and first):
            self._warn_of_rises(progress)
            self._restart(stream)
            progress.restart()
        self._place(stream, position, progress.timestep_of(*time))
        self._override(stream, context)
        return stream

    def _by_order(self, own: Own, strict: bool) -> Stream:
        """Calls at one step belong to different streams, by their order."""
        schedule, progress = self._schedule, self._progress
        position = None
        if schedule is not None and schedule.counts:
            position = schedule.counted(lambda: own().value)
        time = self._time(None, position, own)
        if time.value is None and position is None:
            return self._lost(strict)
        self._take_turn(progress.see(position, time.value))
        timestep = progress.timestep_of(*time)
        if schedule is not None and position is None:
            position = schedule.find(timestep)
            known = schedule.timestep(position)
            timestep = timestep if known is None else known
        stream = self._named(f"call {self._order}")
        self._place(stream, position, timestep)
        return stream

    def _lost(self, strict: bool) -> Stream:
        if strict:
            raise PolicyError(
                "steps cannot be told apart: there is no cache_context and no "
                "timestep. Call inside module.cache_context(name), or pass "
                "compile(scheduler=...), or set current_timestep_callback."
            )
        self.reset()
        return self._named("call 0")

    def _take_turn(self, move: Move) -> None:
        if move is Move.SAME:
            self._order += 1
            if self._order % _MOST_STREAMS == 0:
                self._drop_streams()
            return
        if move is Move.BACK:
            self._warn_of_rises(self._progress)
            self._progress.restart()
        if move is Move.BACK or self._order >= _MOST_STREAMS:
            self._drop_streams()
        self._order = 0

    def _place(
        self, stream: Stream, position: int | None, timestep: float | None
    ) -> None:
        place = Place()
        if self._schedule is not None:
            place = self._schedule.place(position)
        stream.timestep = timestep
        stream.scheduled = position
        stream.position, stream.count = place.position, place.count
        stream.sigma = place.sigma

    def _override(self, stream: Stream, context: StepContext) -> None:
        if context.step_index is not None:
            stream.position = context.step_index
        if context.num_inference_steps is not None:
            stream.count = context.num_inference_steps
        if context.sigma is not None:
            stream.sigma = self.read(context.sigma)

    def _position(self, stream: Stream, own: Own) -> int | None:
        """The position by the attached scheduler, counted for it if it does not."""
        schedule, progress = self._schedule, stream.progress
        if schedule is None:
            return None
        if schedule.counts:
            return schedule.counted(lambda: own().value)
        ended = False
        if progress.calls and progress.begin is not None:
            ended = progress.begin + progress.calls >= len(schedule)
        if ended:
            # Every step was seen, so that a loop over the same timesteps begins.
            self._restart(stream)
            progress.forget()
        if not progress.calls:
            progress.begin = schedule.find(own().value)
        return None if progress.begin is None else progress.begin + progress.calls

    def _time(
        self, context: StepContext | None, position: int | None, own: Own
    ) -> Time:
        if context is not None and context.timestep is not None:
            return Time(self.read(context.timestep), False)
        known = None
        if self._schedule is not None:
            known = self._schedule.timestep(position)
        return own() if known is None else Time(known, False)

    def _own(self, argument: Any, scale: Callable[[], float]) -> Time:
        current = None if self.callback is None else self.callback()
        if current is not None:
            return Time(self.read(current), False)
        if argument is None:
            return Time(None, False)
        return Time(self.read(argument) * scale(), True)

    def _named(self, name: str) -> Stream:
        return self.streams.setdefault(name, Stream(name))

    def _restart(self, stream: Stream) -> None:
        self.measure()
        self.stats.resets += 1
        stream.reset()

    def _drop_streams(self) -> None:
        self.measure()
        for stream in self.streams.values():
            self.stats.resets += stream.index > 0
        self.streams.clear()

    def _warn_of_rises(self, progress: Progress) -> None:
        if progress.rises == _RISES_BEFORE_WARNING:
            warnings.warn(
                "the timestep rose at three calls in a row, and each rise starts a new "
                "generation, so nothing is reused. If this loop counts up, pass "
                "compile(scheduler=...), or a current_timestep_callback that counts "
                "down, or give cache_context(step_index=...).",
                stacklevel=2,
            )

    def read(self, value: Any) -> float:
        """A number on the host; the largest of several.

        Where frames are given, they have a timestep of their own: 0, without noise.
        """
        if not isinstance(value, Tensor):
            return float(value)
        self.stats.device_reads += value.device.type != "cpu"
        return float(value if value.numel() == 1 else value.max())
