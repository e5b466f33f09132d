"""Decisions and scalars: what the host works out for each step, as records.

Those of graphcache are written as what they are. A decision of somebody else's is
written as a table of what it says: by the contract of `Decision` there is only so much
that it can say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphcache.engine.manifest import MANIFEST_FILE, DecisionRecord, ScalarRecord
from graphcache.errors import EngineError, PolicyError
from graphcache.policy.data import fields_of, read_fields
from graphcache.policy.decisions import Decision, Static, Step
from graphcache.policy.fastercache import Inside
from graphcache.policy.parts import DECISIONS
from graphcache.policy.scalars import SIGMA, STEP, Scalar


@dataclass(frozen=True)
class Tabulated(Static):
    """What another decision says, by step, timestep and distance from the end.

    Attributes:
        said: By step (up to the horizon, then one period); by timestep (not known,
            below the first edge, at it, between it and the second, and so on); by how
            many steps are left (not known, one, two, and so on, last any other). None
            where the decision cannot say.
    """

    said: tuple[tuple[tuple[bool | None, ...], ...], ...]
    horizon: int = 0
    period: int = 1
    edges: tuple[float, ...] = ()
    closing: int = 0
    scheduled: bool = False

    def __post_init__(self) -> None:
        times = 2 * len(self.edges) + 2 if self.edges else 1
        lefts = self.closing + 2 if self.closing else 1
        whole = (
            min(self.period, self.horizon + 1, self.closing + 1) >= 1
            and len(self.said) == self.horizon + self.period
            and all(len(row) == times for row in self.said)
            and all(len(cell) == lefts for row in self.said for cell in row)
        )
        if not whole:
            raise PolicyError("the table does not have a place for every step")

    @staticmethod
    def of(decision: Decision) -> Tabulated:
        """The table of a decision.

        Raises:
            PolicyError: If it cannot say anything of some step.
        """
        edges = tuple(sorted({float(edge) for edge in decision.edges}))
        said = tuple(
            tuple(
                tuple(_said(decision, place, time, left) for left in _lefts(decision))
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
        if step.index == 0:
            return True
        place = step.place if self.scheduled else step.index
        left = None if step.count is None else step.count - place
        if place >= self.horizon:
            place = self.horizon + (place - self.horizon) % self.period
        said = self.said[place][self._time(step.timestep)][self._left(left)]
        if said is None:
            raise PolicyError(
                f"the decision cannot be taken at timestep {step.timestep} of "
                f"{step.count} steps: pass load(scheduler=...), or give "
                "cache_context(timestep=..., num_inference_steps=...)"
            )
        return said

    def _time(self, timestep: float | None) -> int:
        if not self.edges or timestep is None:
            return 0
        below = sum(edge < timestep for edge in self.edges)
        return 1 + 2 * below + (timestep in self.edges)

    def _left(self, left: int | None) -> int:
        if not self.closing or left is None:
            return 0
        return min(max(left, 1), self.closing + 1)


def _said(
    decision: Decision, place: int, time: float | None, left: int | None
) -> bool | None:
    """What a decision says of a step; None if something that is not known matters."""
    if not place and not decision.horizon:
        # The first step computes whatever its place in the period is.
        place = decision.period
    count = None if left is None else place + left
    step = Step(place, time, count=count)
    if decision.scheduled:
        step = Step(max(place, 1), time, place, count)
    try:
        return bool(decision.computes(step))
    except PolicyError:
        if None in (time, count):
            return None
        raise


def _times(edges: Sequence[float]) -> list[float | None]:
    """No timestep, then one for each place among the edges."""
    if not edges:
        return [None]
    found: list[float | None] = [None, _between(-math.inf, edges[0])]
    for edge, after in zip(edges, [*edges[1:], None], strict=True):
        found += [edge, _between(edge, after)]
    return found


def _between(low: float, high: float | None) -> float:
    """A timestep above `low` and, if there is one, below `high`."""
    if high is None or math.isinf(high):
        return low + 1.0 if math.isfinite(low) else 0.0
    return high - 1.0 if math.isinf(low) else (low + high) / 2


def _lefts(decision: Decision) -> list[int | None]:
    """That the number of steps is not known, then how many may be left."""
    return [None, *range(1, decision.closing + 2)] if decision.closing else [None]


_KINDS = (*DECISIONS, Tabulated)
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
    fields = fields_of(decision, f"the decision of {name}")
    return DecisionRecord(type(decision).__name__, fields)


def _made(kind: type, fields: Mapping[str, Any], what: str) -> Any:
    """A dataclass from its fields.

    Raises:
        EngineError: If they are wrong.
    """
    try:
        return read_fields(fields, kind, kind.__name__, kind.__name__)
    except PolicyError as error:
        raise EngineError(
            f"{MANIFEST_FILE}: {what} {kind.__name__} is malformed: {error}"
        ) from error


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
    decision: Decision = _made(kind, record.fields, "the decision")
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
        return ScalarRecord(scalar.name, "inside", fields_of(scalar.of, scalar.name))
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
        return Scalar(record.name, _made(Inside, record.fields, "the number"))
    known = {"step": STEP, "sigma": SIGMA}
    if record.kind not in known:
        raise EngineError(
            f"the engine needs the number {record.kind}, which this graphcache does "
            "not know: install a newer one"
        )
    return known[record.kind]
