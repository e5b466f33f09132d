"""Idle: notices a cache that could have reused something and never did.

Such a generation is not wrong, but it is as slow as without a cache, and nobody would
know. When it ends, one warning says why. Nothing is said where nothing could be reused:
a policy that never reuses, a threshold of 0, a cache that is disabled, a generation of
one step, or one whose steps the policy computes whatever their timesteps are, such as a
warm-up that is longer than the loop.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from graphcache.errors import CacheIdleWarning, PolicyError
from graphcache.policy.decisions import Decision, Step

if TYPE_CHECKING:
    from graphcache.runtime.loop import Loop
    from graphcache.runtime.progress import Progress
    from graphcache.runtime.streams import Stream

_RESTARTS_BEFORE_WARNING = 3


@dataclass
class Story:
    """What happened to a stream since it began, as far as a warning tells of it.

    Attributes:
        loop: What its latest step ran; None if nothing counts.
        thresholds: Those that were last compared with, by policy.
        last: Its latest step.
        reused: Policies of which something was reused.
        fresh: How many steps found empty buffers.
        why: Why buffers were let go of, at last.
        lowest: The lowest timestep that was seen.
        highest: The highest.
        scores: The lowest score, by policy.
    """

    loop: Loop | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    last: Step | None = None
    reused: set[str] = field(default_factory=set)
    fresh: int = 0
    why: str = "shapes, arguments or the module changed"
    lowest: float = math.inf
    highest: float = -math.inf
    scores: dict[str, float] = field(default_factory=dict)

    def note(
        self,
        step: Step,
        computed: Mapping[str, bool],
        scores: Mapping[str, float],
        thresholds: Mapping[str, float],
    ) -> None:
        """Take in one step.

        Args:
            step: It.
            computed: By policy, whether anything of it was computed.
            scores: By policy, what was measured.
            thresholds: By policy, what that was compared with.
        """
        if len(self.reused) == len(computed):
            return
        self.last = step
        self.fresh += step.fresh
        if step.timestep is not None:
            self.lowest = min(self.lowest, step.timestep)
            self.highest = max(self.highest, step.timestep)
        for name, score in scores.items():
            self.scores[name] = min(self.scores.get(name, math.inf), score)
            self.thresholds[name] = thresholds[name]
        self.reused.update(name for name, did in computed.items() if not did)

    def complaints(self) -> Iterator[str]:
        """Per policy that could have reused and did not, its name and the reason."""
        loop, last = self.loop, self.last
        if loop is None or last is None or last.index < 1:
            return
        for name in loop.predicates:
            if name in self.reused or self.thresholds.get(name) == 0:
                continue
            if could_reuse(rules_of(loop)[name], last):
                yield f"{name}: {self._reason(name, rules_of(loop)[name], last)}"

    def _reason(self, name: str, decision: Decision, last: Step) -> str:
        if self.fresh == last.index + 1:
            return f"every step found empty buffers, because {self.why}"
        if name in self.scores:
            return (
                f"the lowest score was {self.scores[name]:.3g}, and its threshold is "
                f"{self.thresholds[name]:g}: a higher one reuses"
            )
        edges = [edge for edge in decision.edges if math.isfinite(edge)]
        if edges and self.lowest <= self.highest:
            return (
                f"its timesteps, {' to '.join(f'{edge:g}' for edge in edges)}, were "
                f"never met at a step that it reuses; the loop went from "
                f"{self.highest:g} to {self.lowest:g}"
            )
        return (
            "no step was one that it reuses"
            if last.count is not None
            else "no schedule is known (compile(scheduler=...) tells it), and no call "
            "was one that it reuses"
        )


def rules_of(loop: Loop) -> dict[str, Decision]:
    """What is decided on the host, by policy: for scores, when they are not asked."""
    early = {name: hoisted.forced for name, hoisted in loop.hoisted.items()}
    return {**loop.decisions, **loop.forced, **early}


def could_reuse(decision: Decision, last: Step) -> bool:
    """Whether a decision reuses at any step of a loop, whatever the timesteps are.

    Args:
        decision: What is decided on the host.
        last: The loop's latest step.
    """
    begin = last.place - last.index
    return any(
        _reuses(decision, Step(index, time, begin + index, last.count, last.sigma))
        for index in range(1, last.index + 1)
        for time in _times(decision)
    )


def _reuses(decision: Decision, step: Step) -> bool:
    try:
        return not decision.computes(step)
    except PolicyError:
        return False


def _times(decision: Decision) -> list[float]:
    """A timestep on each side of every edge."""
    edges = sorted(edge for edge in decision.edges if math.isfinite(edge))
    if not edges:
        return [0.0]
    between = [(low + high) / 2 for low, high in pairwise(edges)]
    return [edges[0] - 1.0, *between, edges[-1] + 1.0]


class Idle:
    """Watches the generations of one request."""

    def __init__(self) -> None:
        self._generation = 0
        self._warned: int | None = None
        self._told = False
        self._loop: Loop | None = None

    def begun(self, stream: Stream) -> None:
        """A stream begins."""
        stream.generation = self._generation

    def story(self, stream: Stream, loop: Loop) -> Story:
        """What happened to a stream that is at a step of a loop."""
        self._loop = stream.story.loop = loop
        return stream.story

    def ended(self, stream: Stream, *, early: bool = False) -> None:
        """A stream ended: warn if it was idle and nobody said so yet.

        Args:
            stream: It.
            early: Whether something interrupted it: then nothing is said.
        """
        if stream.generation == self._generation:
            self._generation += 1
        if not early:
            self._judge(stream)

    def over(self) -> None:
        """The generation is over: the next one is told of again."""
        self._told = False

    def finished(self, stream: Stream) -> None:
        """A stream is at the last step of the schedule."""
        self._judge(stream)

    def crowded(self) -> None:
        """More calls came at one step than streams can be told apart."""
        self._tell(
            "more than eight calls came at one step, so that they cannot be told "
            "apart. If a scheduler is attached, the loop does not step it: pass the "
            "one that it steps. Else call inside module.cache_context(name)."
        )

    def restarted(self, progress: Progress) -> None:
        """A loop begins again: warn if it does so at call after call."""
        if progress.rises == _RESTARTS_BEFORE_WARNING:
            warnings.warn(
                "the timestep rose at three calls in a row, and each rise starts a new "
                "generation, so nothing is reused. If this loop counts up, pass "
                "compile(scheduler=...), or a current_timestep_callback that counts "
                "down, or give cache_context(step_index=...).",
                CacheIdleWarning,
                stacklevel=2,
            )
        elif progress.false_starts == _RESTARTS_BEFORE_WARNING:
            self._tell(
                "every call looked like the first of a new generation: the step index "
                "of the context, or the count of the attached scheduler, does not move "
                "with the calls. Pass the scheduler that the loop steps, or the index "
                "of each step."
            )

    def _tell(self, reason: str) -> None:
        loop = self._loop
        rules = {} if loop is None else rules_of(loop)
        step = Step(1, position=1)
        if self._told or not any(could_reuse(rule, step) for rule in rules.values()):
            return
        self._told = True
        _warn(reason)

    def _judge(self, stream: Stream) -> None:
        if self._warned == stream.generation:
            return
        complaints = [*stream.story.complaints()]
        if complaints:
            self._warned = stream.generation
            _warn("; ".join(complaints))


def _warn(reason: str) -> None:
    warnings.warn(
        f"the cache was idle: nothing was reused in a generation. {reason}",
        CacheIdleWarning,
        stacklevel=2,
    )
