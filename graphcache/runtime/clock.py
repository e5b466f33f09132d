"""The step clock: which stream a call belongs to, and at which step it is.

There is one clock for each request (`graphcache.runtime.requests`).

The timestep comes, in this order, from the caller's context, from the attached
scheduler, from the config's callback, and from the timestep argument itself. Only the
last two may read a device tensor at every step. The place in the schedule comes from
the context, else from the attached scheduler.

Inside a context the context's name is the stream. Without one, calls at one step are
told apart by the prompt that they are given (`graphcache.runtime.prompts`), and by
their order where that tells nothing: the first is one stream, the second another. A
second call with the prompt of a stream that has been called at this step already is the
second stage of a solver (Heun), unless its prompt was so from the first step on, or it
is given the very same latents: then it is another stream. A step is one position of an
attached scheduler that counts its own steps, and one timestep otherwise. Where every
frame has a timestep of its own, a step is where their mean moves.

A generation begins when the scheduler's timesteps are made anew, when the context's
step index or the scheduler's count falls, when the context tells another number of
steps, another timestep for the same index or one that goes against the loop, or when
the timestep goes back: up in a loop that counts down, down in one that counts up. A
stream that is called twice at its very first step begins again: computing once more is
the safe reading.

A stream whose prompt becomes another keeps its place in the loop and reuses nothing of
what was computed for the one before.

What cannot be told, and how it is read:

* With neither contexts nor an attached scheduler, a loop that is aborted between two
  calls during its first step: the next loop's first calls look like further streams.
* With neither a step index nor an attached scheduler, a loop that is aborted between
  two calls and followed by one that begins at a lower timestep: it looks like the rest
  of the first. So with a step index, if the next loop begins at the very next index
  with a timestep that fits and the same number of steps. If the prompt tensor is
  another, nothing is reused across the two all the same.
* With neither of the two, a loop that counts up and begins at 50 or above: every rise
  looks like a new generation, and a warning says so.
* With neither of the two, and with no reset between, a loop of one step below 50 and
  then one that begins higher: they look like one loop that counts up.
* Without contexts and without a prompt among the arguments, or with a prompt tensor
  that is made anew for every call: a solver that calls twice at one timestep (Heun),
  unless a scheduler that counts is attached: the second call looks like another stream.
  Nothing is shared wrongly, but each reuses its own calls only. So with PNDM, which
  repeats a timestep and does not count. There, if the first of two streams ends before
  the second, the second looks like the first.
* Without contexts, more than eight calls at one step: nothing of them is reused, and a
  warning says so.
* Without contexts, a reset between two calls of one step: the second call looks like
  the first stream.
* With contexts and an attached scheduler that does not count (DDIM), a stream that
  leaves out steps: its position is behind.
* An attached scheduler that counts and is not the one that the pipeline steps: it is
  found out when the calls' own timestep moves and its count does not, and from there on
  it is left out. While other requests are in progress, each call's own timestep is
  compared with it, which is a read a call.

`_reset_stateful_cache()`, which diffusers' pipelines call when they end, and exceptions
inside the module or a context begin a new generation of the request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.runtime.idle import Idle
from graphcache.runtime.order import MOST_STREAMS, Line
from graphcache.runtime.progress import Move, Progress
from graphcache.runtime.prompts import Given, Prompt
from graphcache.runtime.schedule import Place, Schedule
from graphcache.runtime.sources import Sources
from graphcache.runtime.stats import Statistics
from graphcache.runtime.streams import Stream, held_bytes
from graphcache.runtime.times import Own, Time
from graphcache.runtime.times import StepContext as StepContext


class Clock:
    """Tells the streams and steps of one request apart.

    Attributes:
        stats: Where reads and resets are counted.
        request: Name of the request; None if it has none.
        context: What the caller's context says.
        streams: The streams of the request, by name.
        sources: What this clock and its twins ask.
        idle: Notes whether anything is reused.
        busy: Held while a call of the request is in progress.

    Args:
        stats: Where reads and resets are counted.
        scheduler: A diffusers scheduler whose ``timesteps`` are read once a generation,
            or a function that returns the current one.
        callback: Returns the current timestep, or None when there is none.
    """

    def __init__(
        self,
        stats: Statistics,
        scheduler: Any = None,
        callback: Callable[[], Any] | None = None,
    ) -> None:
        self.stats = stats
        self.request: str | None = None
        self.context: StepContext | None = None
        self.streams: dict[str, Stream] = {}
        self.idle = Idle()
        self.sources = Sources(stats, scheduler, callback)
        self._attached = None if scheduler is None else Schedule(scheduler, stats)
        # Of all calls without a context together.
        self._progress = Progress()
        self._line = Line()
        self.busy = threading.Lock()
        # Whether the argument of the call in progress can be read without waiting.
        self._free = False

    def twin(self, request: str | None) -> Clock:
        """A clock of another request, that asks the same sources."""
        twin = Clock(self.stats)
        twin.request = request
        twin.sources = self.sources
        scheduler = self.sources.scheduler
        twin._attached = None if scheduler is None else Schedule(scheduler, self.stats)
        return twin

    @property
    def callback(self) -> Callable[[], Any] | None:
        """The callback of this clock and its twins."""
        return self.sources.callback

    @callback.setter
    def callback(self, callback: Callable[[], Any] | None) -> None:
        self.sources.callback = callback

    @property
    def _schedule(self) -> Schedule | None:
        attached = self._attached
        return attached if attached is not None and attached.followed else None

    def tick(
        self,
        argument: Any,
        scale: Callable[[], float],
        *,
        strict: bool = True,
        given: Given | None = None,
    ) -> Stream:
        """The stream of this call, with its step set; reset if the loop restarted.

        Args:
            argument: The call's timestep argument: a tensor, or None.
            scale: By what the argument is multiplied to be in the scheduler's units.
            strict: Whether it is an error if streams cannot be told apart; if not,
                every such call is the first of its own.
            given: What else the call is given that tells streams apart.

        Raises:
            PolicyError: If there is neither a context nor any timestep.
        """
        own = cache(lambda: self.sources.own(argument, scale))
        self._free = isinstance(argument, Tensor) and argument.device.type == "cpu"
        if self._attached is not None:
            self._follow(self._attached, own)
        if self.context is None:
            return self._by_order(own, strict, given)
        return self._by_context(self.context, own, given)

    def ahead(self, stream: Stream) -> Sequence[float]:
        """The timesteps from the stream's to the loop's end; empty if not known."""
        schedule = self._schedule
        return () if schedule is None else schedule.ahead(stream.scheduled)

    def reset(self, *, early: bool = False) -> None:
        """Reset every stream and forget the order of calls.

        Args:
            early: Whether something interrupted the generation.
        """
        self._drop_streams(early=early)
        self._progress = Progress()
        self.idle.over()
        if self._attached is not None:
            self._attached.renew()

    def measure(self) -> None:
        """Note how many bytes of buffers are held, by all requests together."""
        live = self.sources.live or self.held
        self.stats.hold(held_bytes(live()))

    def held(self) -> list[Tensor]:
        """The buffers of this request."""
        return [t for stream in [*self.streams.values()] for t in stream.held()]

    def _follow(self, schedule: Schedule, own: Own) -> None:
        """Look whether the scheduler begins a generation, and whether it is ours."""
        doubted = self.sources.contested() or schedule.given_up
        before = schedule.source
        began = schedule.refresh()
        if schedule.source is not before:
            # In the midst of a loop, another thread's may have begun.
            doubted |= any(stream.is_amid for stream in self.streams.values())
        if doubted and schedule.followed and schedule.counts:
            schedule.counted(lambda: own().value)
            if schedule.differs(own().value):
                self._give_up(schedule)
                return
        if began:
            self.reset()

    def _give_up(self, schedule: Schedule) -> None:
        """The loop follows another scheduler; what was foreseen by this one is void."""
        schedule.give_up()
        for stream in self.streams.values():
            if stream.plans:
                stream.let_go()

    def _lost(self, own: Own) -> bool:
        """Whether the loop turns out not to follow the attached scheduler."""
        schedule = self._schedule
        if schedule is None or not schedule.counts:
            return False
        lost = schedule.stands_still(lambda: own().value)
        if lost:
            self._give_up(schedule)
        return lost

    def _by_context(
        self, context: StepContext, own: Own, given: Given | None
    ) -> Stream:
        stream = self._named(context.name)
        progress = stream.progress
        position = self._position(stream, own)
        said = context.step_index
        at = position if said is None else said
        stays = progress.calls > 0 and position == stream.scheduled
        if position is not None and stays and self._lost(own):
            return self._by_context(context, own, given)
        time = self._time(context, position, own)
        first = progress.calls == 1
        doubted = said is not None and self._schedule is None
        move = progress.see(at, time, context.num_inference_steps, doubted=doubted)
        if move is Move.BACK or (move is Move.SAME and first):
            # A scheduler that counts moves before a generation of one step is over.
            progress.false_starts += move is Move.SAME and position is not None
            self.idle.restarted(progress)
            self._restart(stream)
            progress.restart()
        self._take(stream, given)
        self._place(stream, position, progress.timestep_of(time))
        self._override(stream, context)
        return stream

    def _by_order(self, own: Own, strict: bool, given: Given | None) -> Stream:
        """Calls at one step belong to different streams: by their prompts or order."""
        schedule, progress = self._schedule, self._progress
        position = None
        if schedule is not None and schedule.counts:
            position = self._counted(schedule, own)
            again = position == progress.position and self._line.doubtful(given)
            if again and self._lost(own):
                return self._by_order(own, strict, given)
        time = self._time(None, position, own)
        if time.value is None and position is None:
            return self._unknown(strict)
        self._take_turn(progress.see(position, time))
        timestep = progress.timestep_of(time)
        if schedule is not None and position is None:
            position = schedule.find(timestep)
            known = schedule.timestep(position)
            timestep = timestep if known is None else known
        stream = self._named(self._line.turn_of(given))
        self._line.join(stream)
        self._take(stream, given)
        self._place(stream, position, timestep)
        return stream

    def _unknown(self, strict: bool) -> Stream:
        if strict:
            raise PolicyError(
                "steps cannot be told apart: there is no cache_context and no "
                "timestep. Call inside module.cache_context(name), or pass "
                "compile(scheduler=...), or set current_timestep_callback."
            )
        self.reset()
        return self._named("call 0")

    def _take_turn(self, move: Move) -> None:
        line = self._line
        if move is Move.SAME:
            line.next_call()
            if line.order % MOST_STREAMS == 0:
                self.idle.crowded()
                self._drop_streams(keep_turn=True)
            return
        if move is Move.BACK:
            self.idle.restarted(self._progress)
            self._progress.restart()
        if move is Move.BACK or line.order >= MOST_STREAMS:
            self._drop_streams()
        line.next_step()

    def _take(self, stream: Stream, given: Given | None) -> None:
        """Take in the prompt; what was computed for another one is let go of."""
        if given is None:
            return
        prompt = stream.prompt
        if prompt is not None and prompt.is_of(given):
            prompt.confirm(given)
            return
        if prompt is not None and prompt.is_another(given):
            stream.let_go("the prompt became another one")
        stream.prompt = Prompt(given)

    def _place(
        self, stream: Stream, position: int | None, timestep: float | None
    ) -> None:
        schedule = self._schedule
        place = Place() if schedule is None else schedule.place(position)
        stream.timestep, stream.scheduled = timestep, position
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
            return self._counted(schedule, own)
        if progress.calls and progress.begin is not None:
            if progress.begin + progress.calls >= len(schedule):
                # Every step was seen, so that a loop over the same timesteps begins.
                self._restart(stream)
                progress.forget()
        if not progress.calls:
            progress.begin = schedule.find(own().value)
        return None if progress.begin is None else progress.begin + progress.calls

    def _counted(self, schedule: Schedule, own: Own) -> int:
        position = schedule.counted(lambda: own().value)
        if self._free:
            schedule.begin_at(lambda: own().value)
        return position

    def _time(
        self, context: StepContext | None, position: int | None, own: Own
    ) -> Time:
        if context is not None and context.timestep is not None:
            return Time(self.read(context.timestep))
        schedule = self._schedule
        known = None if schedule is None else schedule.timestep(position)
        return own() if known is None else Time(known)

    def _named(self, name: str) -> Stream:
        stream = self.streams.get(name)
        if stream is None:
            stream = self.streams[name] = Stream(name)
            self.idle.begun(stream)
        return stream

    def _restart(self, stream: Stream) -> None:
        self.measure()
        self.stats.count(resets=1)
        self.idle.ended(stream)
        stream.reset()
        self.idle.begun(stream)

    def _drop_streams(self, *, keep_turn: bool = False, early: bool = False) -> None:
        if self.streams:
            self.measure()
        streams = [*self.streams.values()]
        self.stats.count(resets=sum(stream.index > 0 for stream in streams))
        self.streams.clear()
        self._line.clear(keep_turn=keep_turn)
        for stream in streams:
            self.idle.ended(stream, early=early)

    def read(self, value: Any) -> float:
        """A number on the host; the largest of several.

        Where frames are given, they have a timestep of their own: 0, without noise.
        """
        return self.sources.read(value).value
