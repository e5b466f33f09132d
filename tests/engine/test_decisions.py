"""Decisions and numbers as records: what is read says what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphcache import EngineError, Interval, Mask, Policy, PolicyError
from graphcache.engine import export
from graphcache.engine.decisions import (
    Tabulated,
    decision_of,
    decision_record,
    scalar_of,
    scalar_record,
)
from graphcache.engine.manifest import DecisionRecord, ScalarRecord
from graphcache.policy import (
    Always,
    Attention,
    Ends,
    LinearExtrapolation,
    Never,
    Scalar,
    Static,
    Step,
    Warmed,
)
from graphcache.policy.fastercache import low_weight
from graphcache.policy.scalars import SIGMA, STEP
from graphcache.policy.tgate import BeforeGate
from tests.engine.engines import compiled, engine_of, steps
from tests.models import run_loop, same

INFINITE = float("inf")
KNOWN = [
    Always(),
    Never(),
    Warmed(3, 2, 7),
    Mask((1, 0, 0, 1, 0)),
    Mask((0, 1, 0), steps=3, wraps=True),
    Ends(2, 3),
    Ends(1, 1, steps=9, lenient=True),
    Interval(3),
    Interval(2, (100, 800)),
    Interval(2, (-INFINITE, INFINITE)),
    BeforeGate(5, 2, 1),
]
STEPS = [
    Step(index, time, position, count)
    for index in range(13)
    for time in (None, 0.0, 99.5, 100.0, 450.0, 800.0, 999.0)
    for position in (None, index, index + 2)
    for count in (None, 13, 20)
]


def through_json(decision: Any) -> Any:
    record = msgspec.json.encode(decision_record("p", decision))
    return decision_of(msgspec.json.decode(record, type=DecisionRecord))


def said(decision: Any, step: Step) -> bool | None:
    """What it says; None if it cannot."""
    try:
        return bool(decision.computes(step))
    except PolicyError:
        return None


@pytest.mark.parametrize("decision", KNOWN, ids=repr)
def test_ours_are_written_as_they_are(decision: Any) -> None:
    again = through_json(decision)
    assert again == decision
    assert [said(again, step) for step in STEPS] == [
        said(decision, step) for step in STEPS
    ]


# What counts the loop by itself, whatever it is told, does not keep the contract.
TABULATED = [known for known in KNOWN if getattr(known, "steps", None) is None]


@pytest.mark.parametrize("decision", TABULATED, ids=repr)
def test_a_table_says_the_same(decision: Any) -> None:
    table = Tabulated.of(decision)
    assert through_json(table) == table
    for step in STEPS:
        assert said(table, step) == said(decision, step), step


@dataclass(frozen=True)
class Arbitrary:
    """Any decision that the contract allows, by a seed."""

    seed: int
    horizon: int
    period: int
    edges: tuple[float, ...]
    closing: int
    scheduled: bool
    check = Static.check

    def computes(self, step: Step) -> bool:
        """A fixed coin for what the contract lets it see."""
        place = step.place if self.scheduled else step.index
        if step.index == 0:
            return True
        if self.edges and step.timestep is None:
            raise PolicyError("no timestep")
        if self.closing and step.count is None:
            raise PolicyError("no count")
        left = min((step.count or 0) - place, self.closing + 1) if self.closing else 0
        if place >= self.horizon:
            place = self.horizon + (place - self.horizon) % self.period
        sides = tuple((e < step.timestep, e == step.timestep) for e in self.edges)
        return hash((self.seed, place, sides, left)) % 2 == 0


TIMES = [-5.0, 0.0, 10.0, 55.5, 100.0, 400.0, 999.0]
arbitrary = st.builds(
    Arbitrary,
    st.integers(0, 1000),
    st.integers(0, 4),
    st.integers(1, 4),
    st.lists(
        st.sampled_from([0.0, 10.0, 100.0, 400.0, INFINITE, -INFINITE]), max_size=3
    ).map(tuple),
    st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(arbitrary, st.integers(0, 3))
def test_any_decision_that_keeps_the_contract(decision: Arbitrary, begin: int) -> None:
    table = through_json(decision)
    assert isinstance(table, Tabulated)
    assert table.horizon == decision.horizon
    for index in range(12):
        position = begin + index if decision.scheduled else None
        for time in (None, *TIMES):
            for count in (None, begin + 12, begin + 15):
                step = Step(index, time, position, count)
                assert said(table, step) == said(decision, step), step


@dataclass(frozen=True)
class Third(Static):
    """Every third step and the one after, which nobody foresaw."""

    @property
    def period(self) -> int:
        """Three."""
        return 3

    def computes(self, step: Step) -> bool:
        """Whether it is."""
        return step.index == 0 or step.index % 3 == 2


def test_a_decision_of_the_users(tmp_path: Path, memory: Any) -> None:
    subject = compiled(Policy("mine", Attention(), Third()))
    engine = engine_of(subject, tmp_path)
    assert same(run_loop(engine, 8), run_loop(subject, 8))
    assert steps(engine) == steps(subject)
    said = [step.computed["mine"] for step in steps(engine)]
    assert said == [True, False, True, False, False, True, False, False]


@dataclass(frozen=True)
class Picky(Third):
    """Has its say about the loop."""

    def check(self, count: int | None) -> None:
        """None is right."""


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy("mine", Attention(), Picky()), r"mine decides by Picky.*check\(\)"),
        (
            Policy(
                "p",
                Attention(),
                Interval(2),
                LinearExtrapolation(Scalar("rising", lambda step: step.index / 50)),
            ),
            "rising is worked out by a function of yours",
        ),
    ],
)
def test_what_only_python_knows_is_refused(
    policy: Policy, message: str, tmp_path: Path, memory: Any
) -> None:
    with pytest.raises(EngineError, match=message):
        export(compiled(policy), tmp_path / "e", backend="memory", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scalar", [STEP, SIGMA, low_weight(1.2, (3, INFINITE))])
def test_numbers(scalar: Scalar) -> None:
    record = msgspec.json.encode(scalar_record(scalar))
    again = scalar_of(msgspec.json.decode(record, type=ScalarRecord))
    step = Step(3, 5.0, sigma=0.25)
    assert (again.name, again.of(step)) == (scalar.name, scalar.of(step))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (DecisionRecord("Tomorrow", {}), "decides by Tomorrow.*install a newer one"),
        (DecisionRecord("Interval", {}), "Interval is malformed.*every"),
        (DecisionRecord("Interval", {"every": 0}), "Interval is malformed.*positive"),
        (DecisionRecord("Interval", {"every": "x"}), "Interval is malformed"),
        (DecisionRecord("Mask", {"computed": [2]}), "Mask is malformed.*0 or 1"),
    ],
)
def test_malformed_decisions(record: DecisionRecord, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        decision_of(record)


def test_malformed_numbers() -> None:
    with pytest.raises(EngineError, match="needs the number noise"):
        scalar_of(ScalarRecord("x", "noise", {}))
    with pytest.raises(EngineError, match="Inside is malformed"):
        scalar_of(ScalarRecord("x", "inside", {"weight": 1.0}))


def test_a_table_of_another_shape_is_refused() -> None:
    fields = decision_record("p", Third()).fields
    for broken in (
        {**fields, "said": fields["said"][:-1]},
        {**fields, "period": 0},
        {**fields, "horizon": -1},
        {**fields, "edges": [1.0]},
        {**fields, "closing": 2},
    ):
        with pytest.raises(EngineError, match="Tabulated is malformed"):
            decision_of(DecisionRecord("Tabulated", broken))
