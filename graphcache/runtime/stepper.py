"""The host loop: resolve stream and step, pick the variant, bind, call."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphcache.analysis.binding import TIMESTEP_ARGUMENTS, timestep_path
from graphcache.errors import CaptureError, GraphCacheError
from graphcache.policy.decisions import Step
from graphcache.runtime.clock import Clock
from graphcache.runtime.halves import check_halves
from graphcache.runtime.loop import Loop
from graphcache.runtime.prompts import Given
from graphcache.runtime.requests import Requests
from graphcache.runtime.segment import Frame, run_route
from graphcache.runtime.stats import Statistics, StepRecord
from graphcache.runtime.streams import Stream
from graphcache.runtime.thresholds import Thresholds
from graphcache.signature import Call, CallSignature

# What a disabled cache is told of every step: nothing that is asked of it counts.
_ANYWHERE = Step(0, timestep=0.0, position=0, count=1, sigma=0.0)


class Stepper(ABC):
    """Runs loops step by step, wherever they come from.

    Attributes:
        enabled: Whether anything is ever reused.
        thresholds: Of the policies whose decisions are dynamic; read at every step.
        stats: What happened so far.
        requests: Whose streams a call finds; each request has a clock.

    Args:
        signature: Binds the calls.
        thresholds: By policy name.
        scheduler: Attached scheduler, a function that returns the current one, or None.
        callback: The config's timestep callback, or None.

    Raises:
        PolicyError: If the scheduler has no timesteps.
    """

    def __init__(
        self,
        signature: CallSignature,
        thresholds: Thresholds,
        scheduler: Any = None,
        callback: Callable[[], Any] | None = None,
    ) -> None:
        self.signature = signature
        self.thresholds = thresholds
        self.stats = Statistics()
        self.requests = Requests(Clock(self.stats, scheduler, callback))
        self.enabled = True
        # Calls of one module take turns: none may run while another one captures the
        # module, and not every executable can run twice at once.
        self._turn = threading.RLock()

    @property
    def clock(self) -> Clock:
        """What tells the streams and steps of the current request apart."""
        return self.requests.current()

    @abstractmethod
    def find(self, call: Call) -> Loop:
        """The loop that is good for a call."""

    def begin(self, stream: Stream) -> None:  # noqa: B027
        """What is to be done once the step is known; nothing by default."""

    def scale(self, call: Call) -> float:
        """By what the timestep argument is multiplied for the scheduler's units."""
        return self.find(call).scale

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of the module."""
        return self.in_turn(lambda: self.step(self.signature.bind(args, kwargs)))

    def in_turn(self, call: Callable[[], Any]) -> Any:
        """One call of the current request, when it is its turn.

        Args:
            call: Makes it.

        Raises:
            GraphCacheError: If one of the request is in progress in another thread.
        """
        clock = self.clock
        if not clock.busy.acquire(blocking=False):
            raise GraphCacheError(
                f"request {clock.request!r} has a call in progress in another thread, "
                "and the steps of a generation follow each other: give every "
                "generation a request of its own"
            )
        try:
            with self._turn:
                return call()
        except BaseException:
            # Whatever was interrupted, no later call may read what it left behind.
            clock.reset(early=True)
            raise
        finally:
            clock.busy.release()

    def reset(self) -> None:
        """Reset every stream of the current request: the next call of each computes."""
        self.clock.reset()

    def disable(self) -> None:
        """Compute everything from now on, whatever the request."""
        self.enabled = False
        self.reset()

    def step(self, call: Call) -> Any:
        """One step; whoever calls this resets if it raises."""
        _refuse_autocast(call)
        stream = self.clock.tick(
            _timestep(call),
            lambda: self.scale(call),
            strict=self.enabled,
            given=Given.of(call.paths, call.tensors, call.key),
        )
        self.begin(stream)
        loop = self.find(call)
        stream.adopt(loop)
        tree = loop.named if call.return_dict else loop.output
        results = self.run(call, loop, stream)
        output = tree.fill(results)
        if loop.writes:
            written = results[len(tree.tensors) :]
            for write in loop.writes:
                write.apply(call.values, call.tensors, written)
        return output

    def run(self, call: Call, loop: Loop, stream: Stream) -> Sequence[Tensor]:
        """Run the step that the stream is at."""
        step = stream.step if self.enabled else _ANYWHERE
        if self.enabled:
            self._check(loop, step)
        flags = loop.flags(step, compute_all=not self.enabled)
        scores = self._decide_early(call, loop, stream, flags)
        if self.enabled:
            check_halves(call, stream, step, flags, self.stats)
        frame = Frame(
            call.tensors,
            stream,
            step,
            flags,
            self.thresholds,
            loop.rules,
            loop.device,
        )
        results = run_route(loop.route(flags), frame)
        computed = loop.computed({**flags, **frame.decisions})
        clock = self.clock
        record = StepRecord(
            stream.name,
            stream.index,
            stream.timestep,
            {name: count > 0 for name, count in computed.items()},
            {**scores, **frame.scores},
            clock.request,
        )
        self.stats.count(host_reads=len(frame.scores))
        self.stats.record(record, loop.regions, computed)
        stream.index += 1
        if self.enabled:
            clock.idle.story(stream, loop).note(
                step, record.computed, record.scores, self.thresholds
            )
            if step.count is not None and step.position == step.count - 1:
                clock.idle.finished(stream)
        else:
            stream.let_go()
        return results

    def _check(self, loop: Loop, step: Step) -> None:
        """Refuse a step that a policy was not made for."""
        if step.fresh:
            loop.check(step, self.context_name)
        loop.check_call(step)

    @property
    def context_name(self) -> str | None:
        """Name of the caller's context, if there is one."""
        context = self.clock.context
        return None if context is None else context.name

    def _decide_early(
        self, call: Call, loop: Loop, stream: Stream, flags: dict[str, bool]
    ) -> dict[str, float]:
        """Take the decisions that the timestep determines; returns their scores."""
        if not self.enabled:
            flags.update(dict.fromkeys(loop.hoisted, True))
            return {}
        scores = {}
        for name, hoisted in loop.hoisted.items():
            computes, score, reads = hoisted.decide(
                call,
                stream,
                self.thresholds,
                lambda: self.clock.ahead(stream),
                self.clock.read,
            )
            self.stats.count(host_reads=reads)
            flags[name] = computes
            if score is not None:
                scores[name] = score
        return scores


def _timestep(call: Call) -> Tensor | None:
    for name in TIMESTEP_ARGUMENTS:
        value = call.values.get(name)
        if isinstance(value, (int, float)):
            raise CaptureError(
                f"{name}={value!r} is a plain number, which would be compiled into "
                f"the graph: pass a tensor, torch.tensor([{value!r}])"
            )
    tensors = dict(zip(call.paths, call.tensors, strict=True))
    path = timestep_path(tensors)
    return None if path is None else tensors[path]


def _refuse_autocast(call: Call) -> None:
    for kind in {tensor.device.type for tensor in call.tensors}:
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            raise CaptureError(
                f"autocast is on for {kind}, and a graph has one precision: convert "
                "the module and its inputs with .to(dtype) instead"
            )
