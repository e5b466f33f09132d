"""The T-GATE preset."""

from __future__ import annotations

from typing import Any

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import Attention, Decision, Ends, Step, tgate


def computed(decision: Decision, count: int = 15) -> list[int]:
    return [index for index in range(count) if decision.computes(Step(index))]


def by_authors(gate_step: int, interval: int, warmup: int, count: int) -> list[int]:
    """The steps at which the authors' scheduler computes self-attention."""
    found = []
    for step in range(count):
        if step < gate_step - 1:
            reused = step > warmup and step % interval != 0
        else:
            reused = False
        found += [] if reused else [step]
    return found


def test_cross_attention_until_the_gate_self_attention_after_it() -> None:
    cross, own = tgate()
    assert cross.regions == Attention(("cross",))
    assert cross.decision == Ends(10)
    assert cross.required
    assert computed(cross.decision) == list(range(10))
    assert own.regions == Attention(("self",))
    assert not own.required
    assert computed(own.decision) == [0, 1, 2, 5, *range(9, 15)]


@pytest.mark.parametrize("gate_step", [3, 8, 10])
@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_schedule_of_self_attention(gate_step: int, interval: int, warmup: int) -> None:
    _, own = tgate(gate_step, interval, warmup)
    assert computed(own.decision, 20) == by_authors(gate_step, interval, warmup, 20)


def test_an_interval_of_one_leaves_self_attention_alone() -> None:
    (cross,) = tgate(5, 1)
    assert cross.name == "cross"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_step": 0}, "the gate step must be a positive integer"),
        ({"interval": 0}, "interval of self-attention"),
        ({"warmup": -1}, "the warm-up must be"),
        ({"gate_step": 3, "warmup": 4}, "warm-up of 4 steps is longer"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        tgate(**options)
