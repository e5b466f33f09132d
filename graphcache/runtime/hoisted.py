"""Hoisted decisions: worked out before the step, or before the whole loop.

The score of such a decision depends on the timestep alone. If the timesteps of the loop
are known, its decisions are known before the first step, and no step reads anything;
otherwise the score is worked out from the call's timestep, just ahead of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphcache.analysis.binding import timestep_path
from graphcache.policy.decisions import Decision, Step
from graphcache.policy.threshold import Comparison
from graphcache.runtime.segment import Frame, Route, run_route
from graphcache.runtime.streams import Stream
from graphcache.signature import Call


@dataclass
class Plan:
    """Decisions of one stream, as far as they are known.

    Attributes:
        threshold: What the scores were compared with.
        decisions: By step, since the buffers were empty.
        scores: By step; None where the decision was forced.
        states: The indicator's buffers before each step.
        begin: Where in the schedule the stream began, if its steps were foreseen.
    """

    threshold: float
    decisions: list[bool] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    begin: int | None = None

    def follows(self, step: Step) -> bool:
        """Whether no step was left out since what was foreseen began."""
        return self.begin is None or step.place - step.age == self.begin

    def forget_from(self, index: int, threshold: float) -> None:
        """Drop what was decided about a step and those after it."""
        self.threshold = threshold
        for kept in (self.decisions, self.scores):
            del kept[index:]
        del self.states[index + 1 :]


@dataclass(frozen=True)
class HoistedDecision:
    """A decision that the timestep determines.

    Attributes:
        predicate: Its name.
        route: Works out the score and the indicator's new buffers.
        forced: When it is not asked.
        rule: How the score is compared.
        scale: By what the timestep argument is multiplied to be in the scheduler's
            units.
    """

    predicate: str
    route: Route
    forced: Decision
    rule: Comparison
    scale: float

    def decide(
        self,
        call: Call,
        stream: Stream,
        thresholds: Mapping[str, float],
        ahead: Callable[[], Sequence[float]],
        read: Callable[[Tensor], float],
    ) -> tuple[bool, float | None, int]:
        """The decision at the stream's step, its score if it was asked, and the reads.

        Args:
            call: The call of this step.
            stream: Its plans are made or extended.
            thresholds: By predicate.
            ahead: The timesteps from this one to the loop's end, in the scheduler's
                units; empty if they are not known.
            read: Reads a timestep on the host.
        """
        here, threshold = stream.step, thresholds[self.predicate]
        index = here.age
        plan = stream.plans.setdefault(self.predicate, Plan(threshold))
        known = ahead
        if not plan.follows(here):
            # It left out steps, and may again: each is decided when it comes.
            plan.forget_from(index, threshold)
            known = tuple
        elif plan.threshold != threshold:
            plan.forget_from(index, threshold)
        before = sum(score is not None for score in plan.scores)
        if index >= len(plan.decisions):
            times = self._times(call, known(), read)
            if times != [None]:
                plan.begin = here.place - index
            for offset, timestep in enumerate(times):
                step = _later(here, offset, timestep)
                self._extend(plan, self._at(call, timestep), step, thresholds)
        after = sum(score is not None for score in plan.scores)
        return plan.decisions[index], plan.scores[index], after - before

    def _times(
        self, call: Call, ahead: Sequence[float], read: Callable[[Tensor], float]
    ) -> Sequence[float | None]:
        """The timesteps to decide about now; None is that of the call itself.

        A model that is given another clock than the scheduler's, or a time for every
        token, cannot be foreseen.
        """
        given = [tensor for _, tensor in _timesteps(call)]
        if not ahead or not given or any(tensor.ndim > 1 for tensor in given):
            return [None]
        distance = abs(read(given[0]) * self.scale - ahead[0])
        return ahead if distance <= 1e-3 * max(1.0, abs(ahead[0])) else [None]

    def _at(self, call: Call, timestep: float | None) -> list[Tensor]:
        if timestep is None:
            return call.tensors
        changed = {
            path: torch.full_like(tensor, timestep / self.scale)
            for path, tensor in _timesteps(call)
        }
        return [
            changed.get(path, tensor)
            for path, tensor in zip(call.paths, call.tensors, strict=True)
        ]

    def _extend(
        self,
        plan: Plan,
        tensors: Sequence[Tensor],
        step: Step,
        thresholds: Mapping[str, float],
    ) -> None:
        scratch = Stream(self.predicate)
        if plan.states:
            scratch.buffers = dict(plan.states[-1])
        else:
            plan.states.append({})
        flags = {self.predicate: step.fresh or self.forced.computes(step)}
        device = tensors[0].device
        rules = {self.predicate: self.rule}
        frame = Frame(tensors, scratch, step, flags, thresholds, rules, device)
        run_route(self.route, frame)
        plan.decisions.append(frame.decisions[self.predicate])
        plan.scores.append(frame.scores.get(self.predicate))
        plan.states.append(scratch.buffers)


def _timesteps(call: Call) -> list[tuple[str, Tensor]]:
    tensors = dict(zip(call.paths, call.tensors, strict=True))
    path = timestep_path(tensors)
    return [] if path is None else [(path, tensors[path])]


def _later(step: Step, offset: int, timestep: float | None) -> Step:
    """The step so many after this one."""
    return Step(
        index=step.index + offset,
        timestep=step.timestep if timestep is None else timestep,
        position=None if step.position is None else step.position + offset,
        count=step.count,
        sigma=step.sigma,
        begun=step.begun,
    )
