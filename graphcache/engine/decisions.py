"""Decisions and scalars: what the host works out for each step, as records.

Those of graphcache are written as what they are. A decision of somebody else's is
written as a table of what it says: by the contract of `Decision` there is only so much
that it can say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from graphcache.engine.manifest import DecisionRecord, ScalarRecord
from graphcache.errors import EngineError, PolicyError
from graphcache.policy.decisions import (
    Always,
    Decision,
    Ends,
    Interval,
    Mask,
    Never,
    Static,
    Step,
    Warmed,
)
from graphcache.policy.fastercache import Inside
from graphcache.policy.scalars import SIGMA, STEP, Scalar
from graphcache.policy.tgate import BeforeGate


@dataclass(frozen=True)
class Tabulated(Static):
    """What another decision says, by step, timestep and distance from the end.

    Attributes:
        said: By step (up to the horizon, then one period), by place of the timestep
            among the edges (below the first, at it, between it and the second, and so
            on), and by how many steps are left (the last one first, then any other).
    """

    said: tuple[tuple[tuple[bool, ...], ...], ...]
    horizon: int = 0
    period: int = 1
    edges: tuple[float, ...] = ()
    closing: int = 0
    scheduled: bool = False

    @staticmethod
    def of(decision: Decision) -> Tabulated:
        """The table of a decision."""
        edges = tuple(sorted({float(edge) for edge in decision.edges}))
        lefts = range(1, decision.closing + 2)
        said = tuple(
            tuple(
                tuple(
                    decision.computes(Step(place, time, count=place + left))
                    for left in lefts
                )
                for time in _times(edges)
            )
            for place in range(decision.horizon + decision.period)
        )
        return Tabulated(
            said,
            decision.horizon,
            decision.period,
            edges,
            decision.closing,
            decision.scheduled,
        )

    def computes(self, step: Step) -> bool:
        """What the decision said of such a step.

        Raises:
            PolicyError: If the timestep or the number of steps is needed and not known.
        """
        place = step.place if self.scheduled else step.index
        if place >= self.horizon:
            place = self.horizon + (place - self.horizon) % self.period
        return step.index == 0 or self.said[place][self._cell(step)][self._left(step)]

    def _cell(self, step: Step) -> int:
        if not self.edges:
            return 0
        if step.timestep is None:
            raise PolicyError(
                "the decision needs the timestep of each step, and none can be had: "
                "pass load(scheduler=...), or give cache_context(timestep=...)"
            )
        below = sum(edge < step.timestep for edge in self.edges)
        return 2 * below + (step.timestep in self.edges)

    def _left(self, step: Step) -> int:
        if not self.closing:
            return 0
        if step.count is None:
            raise PolicyError(
                "the decision needs the number of steps, and none can be had: pass "
                "load(scheduler=...), or give cache_context(num_inference_steps=...)"
            )
        left = step.count - (step.place if self.scheduled else step.index)
        return min(max(left, 1), self.closing + 1) - 1


def _times(edges: Sequence[float]) -> list[float | None]:
    """One timestep for each place among the edges."""
    if not edges:
        return [None]
    found: list[float | None] = [edges[0] - 1.0, edges[0]]
    for low, high in pairwise(edges):
        found += [(low + high) / 2, high]
    return [*found, edges[-1] + 1.0]


_KINDS = (Always, Never, Warmed, Mask, Ends, Interval, BeforeGate, Tabulated)
_BY_NAME: dict[str, Any] = {kind.__name__: kind for kind in _KINDS}


def decision_record(name: str, decision: Decision) -> DecisionRecord:
    """The record of a decision.

    Args:
        name: Of its policy.
        decision: A static decision.

    Raises:
        EngineError: If it is not one of graphcache's and refuses certain loops, which a
            table cannot say.
    """
    if type(decision) not in _KINDS:
        if getattr(type(decision), "check", None) is not Static.check:
            raise EngineError(
                f"policy {name} decides by {type(decision).__qualname__}, whose "
                "check() an engine cannot hold: inherit Static.check, or use a "
                "decision of graphcache.policy.decisions"
            )
        decision = Tabulated.of(decision)
    fields = {
        field.name: msgspec.to_builtins(getattr(decision, field.name))
        for field in dataclasses.fields(decision)  # type: ignore[arg-type]
    }
    return DecisionRecord(type(decision).__name__, fields)


def decision_of(record: DecisionRecord) -> Decision:
    """The decision of a record.

    Raises:
        EngineError: If there is no such decision, or its fields are wrong.
    """
    kind = _BY_NAME.get(record.kind)
    if kind is None:
        raise EngineError(
            f"the engine decides by {record.kind}, which this graphcache does not "
            "know: install a newer one"
        )
    try:
        decision: Decision = msgspec.convert(record.fields, type=kind)
    except (msgspec.MsgspecError, PolicyError) as error:
        raise EngineError(
            f"the decision {record.kind} is malformed: {error}"
        ) from error
    return decision


def scalar_record(scalar: Scalar) -> ScalarRecord:
    """The record of a number that the host works out.

    Raises:
        EngineError: If it is a function that only Python knows.
    """
    if scalar == STEP:
        return ScalarRecord(scalar.name, "step", {})
    if scalar == SIGMA:
        return ScalarRecord(scalar.name, "sigma", {})
    if isinstance(scalar.of, Inside):
        return ScalarRecord(scalar.name, "inside", msgspec.to_builtins(scalar.of))
    raise EngineError(
        f"{scalar.name} is worked out by a function of yours at each step, which an "
        "engine cannot hold: use a weight inside a timestep window, such as "
        "graphcache.policy.fastercache.low_weight(1.1, (0, 500))"
    )


def scalar_of(record: ScalarRecord) -> Scalar:
    """The number of a record.

    Raises:
        EngineError: If there is no such number.
    """
    if record.kind == "inside":
        return Scalar(record.name, msgspec.convert(record.fields, type=Inside))
    known = {"step": STEP, "sigma": SIGMA}
    if record.kind not in known:
        raise EngineError(
            f"the engine needs the number {record.kind}, which this graphcache does "
            "not know: install a newer one"
        )
    return known[record.kind]
