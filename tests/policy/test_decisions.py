"""Static decisions and what they can say together."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphcache import Always, Interval, PolicyError
from graphcache.policy.decisions import Step, reachable_signatures

intervals = st.builds(
    Interval,
    every=st.integers(1, 6),
    window=st.none()
    | st.tuples(st.integers(0, 500), st.integers(501, 1000)).map(
        lambda pair: (float(pair[0]), float(pair[1]))
    ),
)


def test_interval_computes_every_nth_step_and_outside_the_open_window() -> None:
    decision = Interval(3, (100, 800))
    assert [decision.computes(Step(i, 500)) for i in range(5)] == [1, 0, 0, 1, 0]
    assert decision.computes(Step(1, 800))
    assert decision.computes(Step(1, 100))
    assert not decision.computes(Step(1, 799.5))


def test_interval_without_window_ignores_the_timestep() -> None:
    assert not Interval(2).computes(Step(1, None))


def test_interval_with_window_needs_the_timestep() -> None:
    with pytest.raises(PolicyError, match=r"needs the timestep.*scheduler="):
        Interval(2, (100, 800)).computes(Step(1, None))


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2", None])
def test_interval_must_be_a_positive_integer(every: object) -> None:
    with pytest.raises(PolicyError, match="positive integer"):
        Interval(every)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [(800, 100), (5, 5), (float("nan"), 1)])
def test_window_must_be_ordered(window: tuple[float, float]) -> None:
    with pytest.raises(PolicyError, match="not ordered"):
        Interval(2, window)


@pytest.mark.parametrize("window", [3, (1,), (1, 2, 3), ("a", 1)])
def test_window_must_be_a_pair(window: object) -> None:
    with pytest.raises(PolicyError, match="is a pair"):
        Interval(2, window)  # type: ignore[arg-type]


def test_never_reuse_reaches_one_signature() -> None:
    assert reachable_signatures({"a": Always(), "b": Interval(1)}) == ((True, True),)


def test_equal_intervals_never_part() -> None:
    both = {"a": Interval(2), "b": Interval(2)}
    assert reachable_signatures(both) == ((True, True), (False, False))


@given(st.lists(intervals, min_size=1, max_size=3))
def test_reachable_is_exactly_what_a_long_run_says(parties: list[Interval]) -> None:
    decisions = {str(index): party for index, party in enumerate(parties)}
    edges = {edge for party in parties for edge in party.edges}
    probes = sorted(edges | {edge + delta for edge in edges for delta in (-0.5, 0.5)})
    said = {
        tuple(party.computes(Step(index, timestep)) for party in parties)
        for index, timestep in itertools.product(range(61), probes or [0.0])
    }
    reachable = reachable_signatures(decisions)
    assert set(reachable) == said | {(True,) * len(parties)}
    assert reachable[0] == (True,) * len(parties)
