"""Trajectories: what was measured, stream by stream and generation by generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.decisions import Step
from graphcache.program import Program


@dataclass
class Trajectory:
    """One stream of one generation, from its first step to its last.

    Attributes:
        stream: Name of the stream.
        program: What was run.
        begin: Place of its first step in the schedule; 0 where that is not known.
        count: Steps of the schedule, if that is known.
        steps: What was measured at each step, by name. Nothing that compares with
            earlier steps means anything before there are enough of them.
    """

    stream: str
    program: Program
    begin: int
    count: int | None
    steps: list[dict[str, Tensor]] = field(default_factory=list)

    def changes(self, name: str) -> list[float]:
        """What was measured of every step after the first, which compares with it.

        Raises:
            PolicyError: If a number is not finite.
        """
        found = [float(measured[name]) for measured in self.steps[1:]]
        for step, value in enumerate(found, start=1):
            if not math.isfinite(value):
                raise PolicyError(
                    f"the {name} measured at step {step} of stream {self.stream!r} is "
                    f"{value}: the model gave zeros, or numbers that are not finite"
                )
        return found


class Span(NamedTuple):
    """Where trajectories lie in the schedule.

    Attributes:
        begin: Place of the first step.
        steps: How many steps they have.
        total: How many the schedule has.
    """

    begin: int
    steps: int
    total: int

    @property
    def end(self) -> int:
        """How many steps of the schedule follow."""
        return self.total - self.begin - self.steps


def span_of(trajectories: Sequence[Trajectory]) -> Span:
    """Where the trajectories lie in their common schedule.

    Raises:
        PolicyError: If they differ in that.
    """
    begins = {trajectory.begin for trajectory in trajectories}
    lengths = {len(trajectory.steps) for trajectory in trajectories}
    totals = {trajectory.count for trajectory in trajectories}
    if any(len(found) > 1 for found in (begins, lengths, totals)):
        raise PolicyError(
            "the generations have different lengths, and no step of one is that of "
            f"another: {_listed(trajectories)}. Calibrate with one number of steps at "
            "a time, and let every generation end."
        )
    (begin,), (steps,), (count,) = begins, lengths, totals
    return Span(begin, steps, max(count or 0, begin + steps))


def _listed(trajectories: Sequence[Trajectory]) -> str:
    shown = [
        f"{len(t.steps)} steps from step {t.begin}"
        + ("" if t.count is None else f" of {t.count}")
        + f" of stream {t.stream!r}"
        for t in trajectories
    ]
    return ", ".join(dict.fromkeys(shown))


class Recorder:
    """Collects trajectories while a model is called."""

    def __init__(self) -> None:
        self.trajectories: list[Trajectory] = []
        self._latest: dict[str, Trajectory] = {}

    def add(
        self, stream: str, step: Step, program: Program, measured: Mapping[str, Tensor]
    ) -> None:
        """Add one step.

        Args:
            stream: Name of its stream.
            step: Where the stream is; the first step begins a trajectory.
            program: What was run.
            measured: What was measured, by name.

        Raises:
            PolicyError: If the step does not follow the one before in the schedule.
        """
        if step.fresh:
            begun = Trajectory(stream, program, step.place, step.count)
            self.trajectories.append(begun)
            self._latest[stream] = begun
        latest = self._latest[stream]
        expected = latest.begin + len(latest.steps)
        if step.place != expected:
            raise PolicyError(
                f"stream {stream!r} is at step {step.place} of the schedule and was "
                f"expected at {expected}: what is measured from one call to the next "
                "must be one step apart. Calibrate with a scheduler that calls the "
                "model once a step."
            )
        latest.steps.append(dict(measured))


def mean_of(rows: Sequence[Sequence[float]]) -> list[float]:
    """The arithmetic mean, entry by entry; every row counts the same."""
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]
