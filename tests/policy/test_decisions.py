"""Static decisions and what they can say together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphcache.errors import PolicyError
from graphcache.policy import (
    Always,
    Decision,
    Ends,
    Interval,
    Mask,
    Never,
    Step,
    Warmed,
)
from graphcache.policy.reachable import reachable_signatures
from graphcache.policy.tgate import BeforeGate

windows = st.sampled_from([None, (-math.inf, 500.0), (500.0, math.inf)]) | st.tuples(
    st.integers(0, 500), st.integers(501, 1000)
).map(lambda pair: (float(pair[0]), float(pair[1])))
intervals = st.builds(Interval, every=st.integers(1, 6), window=windows)
warmed = st.builds(
    Warmed,
    every=st.integers(1, 5),
    before=st.integers(0, 3),
    after=st.none() | st.integers(4, 9),
)
masks = st.builds(
    Mask,
    computed=st.lists(st.booleans(), min_size=1, max_size=6).map(tuple),
    wraps=st.booleans(),
)
ends = st.builds(Ends, first=st.integers(0, 4), last=st.integers(0, 3))
gates = st.builds(
    BeforeGate,
    gate_step=st.integers(3, 8),
    interval=st.integers(1, 4),
    warmup=st.integers(0, 3),
)
unscheduled = intervals | warmed | st.sampled_from([Always(), Never()])
scheduled = masks | ends | gates


def steps_of(decision: Decision, count: int, begin: int = 0) -> list[int]:
    """Places of the computed steps, in a loop that begins somewhere."""
    return [
        place
        for place in range(begin, count)
        if decision.computes(Step(place - begin, 0.0, place, count))
    ]


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


def test_warmed_computes_as_taylorseer_of_diffusers() -> None:
    # Step 3 is predicted: the interval is counted from the step after the warm-up.
    assert steps_of(Warmed(5, 3), 20) == [0, 1, 2, 4, 9, 14, 19]
    assert steps_of(Warmed(5, 3, 16), 20) == [0, 1, 2, 4, 9, 14, 16, 17, 18, 19]
    assert steps_of(Warmed(4, 0), 12) == [0, 1, 5, 9]
    assert steps_of(Warmed(1, 2), 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "given", [(0, 3), (5, -1), (5, 3, 2), (1.5, 3), (5, None), (5, 3, "9")]
)
def test_warmed_takes_counts(given: tuple[object, ...]) -> None:
    with pytest.raises(PolicyError, match="must be"):
        Warmed(*given)  # type: ignore[arg-type]


def test_mask_computes_what_it_names_the_first_call_and_after_its_end() -> None:
    mask = Mask((0, 1, 0, 1, 0))
    assert steps_of(mask, 8) == [0, 1, 3, 5, 6, 7]
    assert steps_of(mask, 6, begin=2) == [2, 3, 5]
    assert steps_of(Mask((1, 0, 0), wraps=True), 8) == [0, 3, 6]


def test_mask_goes_by_calls_where_the_place_is_not_known() -> None:
    mask = Mask((1, 1, 0))
    assert [mask.computes(Step(index)) for index in range(4)] == [1, 1, 0, 1]


@pytest.mark.parametrize("values", [(), (2,), (1, 0.5), ("1", "0"), (None,)])
def test_masks_are_zeros_and_ones(values: tuple[object, ...]) -> None:
    with pytest.raises(PolicyError, match="one 0 or 1 per step"):
        Mask(values)  # type: ignore[arg-type]


def test_mask_refuses_another_number_of_steps() -> None:
    with pytest.raises(PolicyError, match="3 entries for 4 steps"):
        Mask((1, 0, 1), 4)
    mask = Mask((1, 0, 1), 3)
    mask.check(3)
    mask.check(None)
    with pytest.raises(PolicyError, match="for 3 steps and the loop has 50"):
        mask.check(50)
    Mask((1, 0, 1)).check(50)


def test_ends_computes_first_and_last_steps_of_the_schedule() -> None:
    assert steps_of(Ends(2, 3), 10) == [0, 1, 7, 8, 9]
    assert steps_of(Ends(0, 0), 4) == [0]
    assert steps_of(Ends(4), 10, begin=2) == [2, 3]
    assert steps_of(Ends(4, 1), 10, begin=6) == [6, 9]


def test_ends_needs_the_number_of_steps_for_the_last_ones() -> None:
    for ask in (lambda: Ends(1, 1).check(None), lambda: Ends(1, 1).computes(Step(5))):
        with pytest.raises(PolicyError, match=r"last 1 steps.*steps="):
            ask()
    Ends(1, 0).check(None)
    assert Ends(1, 1, steps=6).computes(Step(5))
    assert not Ends(1, 1, steps=6).computes(Step(4))


def test_lenient_ends_have_no_last_steps_where_the_number_is_not_known() -> None:
    ends = Ends(1, 2, lenient=True)
    ends.check(None)
    assert not ends.computes(Step(9))
    assert steps_of(ends, 6) == [0, 4, 5]
    assert Ends(1, 2, 6, lenient=True).computes(Step(5))
    with pytest.raises(PolicyError, match="for 6 steps and the loop has 7"):
        Ends(1, 2, 6, lenient=True).check(7)


def test_ends_refuses_another_number_of_steps() -> None:
    Ends(1, 1, steps=6).check(6)
    Ends(1, 1, steps=6).check(None)
    with pytest.raises(PolicyError, match="for 6 steps and the loop has 7"):
        Ends(1, 1, steps=6).check(7)


@pytest.mark.parametrize("given", [(-1, 0), (0, -1), (1.0, 0), (1, 1, 0)])
def test_ends_takes_counts(given: tuple[object, ...]) -> None:
    with pytest.raises(PolicyError, match="must be"):
        Ends(*given)  # type: ignore[arg-type]


def test_never_computes_the_first_call_alone() -> None:
    assert steps_of(Never(), 4) == [0]
    assert steps_of(Never(), 9, begin=5) == [5]


@given(unscheduled | scheduled, st.integers(0, 12))
def test_the_first_call_computes_wherever_the_loop_begins(
    decision: Decision, begin: int
) -> None:
    assert decision.computes(Step(0, 500.0, begin, 20))


def test_never_reuse_reaches_one_signature() -> None:
    assert reachable_signatures({"a": Always(), "b": Interval(1)}) == ((True, True),)


def test_equal_intervals_never_part() -> None:
    both = {"a": Interval(2), "b": Interval(2)}
    assert reachable_signatures(both) == ((True, True), (False, False))


def test_scheduled_and_unscheduled_may_meet_in_any_way() -> None:
    both = {"a": Interval(2), "b": Mask((1, 0), wraps=True)}
    # Counted alike they never part; a loop that begins at the second step is apart.
    assert len(reachable_signatures(both)) == 4


def run(parties: list[Decision], begin: int, count: int, time: float) -> set[tuple]:
    """What decisions say together in a loop."""
    steps = [Step(index, time, begin + index, begin + count) for index in range(count)]
    return {tuple(party.computes(step) for party in parties) for step in steps}


@given(st.lists(unscheduled, min_size=1, max_size=3))
def test_reachable_is_exactly_what_a_long_run_says(parties: list[Decision]) -> None:
    decisions = {str(index): party for index, party in enumerate(parties)}
    edges = {edge for party in parties for edge in party.edges}
    probes = sorted(edges | {edge + delta for edge in edges for delta in (-0.5, 0.5)})
    said = set().union(*(run(parties, 0, 81, time) for time in probes or [0.0]))
    reachable = reachable_signatures(decisions)
    assert set(reachable) == said | {(True,) * len(parties)}
    assert reachable[0] == (True,) * len(parties)


@given(st.lists(scheduled, min_size=1, max_size=3))
def test_reachable_holds_for_schedules_of_any_length(parties: list[Decision]) -> None:
    decisions = {str(index): party for index, party in enumerate(parties)}
    period = math.lcm(*(party.period for party in parties))
    counts = range(1, 14 + min(period, 60))
    said = set().union(*(run(parties, 0, count, 0.0) for count in counts))
    reachable = set(reachable_signatures(decisions))
    assert said <= reachable
    if period <= 60:
        assert reachable == said | {(True,) * len(parties)}


@given(
    st.lists(unscheduled | scheduled, min_size=1, max_size=3),
    st.integers(0, 9),
    st.integers(1, 40),
    st.sampled_from([0.0, 250.0, 500.5, 700.0, 1000.5]),
)
def test_nothing_else_is_ever_said(
    parties: list[Decision], begin: int, count: int, time: float
) -> None:
    decisions = {str(index): party for index, party in enumerate(parties)}
    said = run(parties, begin, count, time)
    assert said <= set(reachable_signatures(decisions))


def test_places_and_calls_are_told_apart() -> None:
    assert Step(3).place == 3
    assert Step(3, position=7).place == 7
