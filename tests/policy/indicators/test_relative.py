"""Relative change since the last computed step, and the limits of its use."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

from graphcache.errors import PolicyError
from graphcache.policy import HeadStream, HoldResidual, RelativeChange, Step, Threshold
from graphcache.policy.decisions import Ends
from tests.policy.gates import Decider, Gate, drifting
from tests.policy.hooked import Stack, run

STEPS = 14


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.1, 0.2, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decisions_and_outputs_are_those_of_first_block_cache(
    threshold: float, dtype: torch.dtype
) -> None:
    head, tail, inputs = (
        [value.to(dtype) for value in drifting(STEPS, seed=seed, pace=0.05)]
        for seed in (1, 2, 3)
    )
    config = FirstBlockCacheConfig(threshold=threshold)
    wanted, ran = run(
        Stack(head, tail), lambda m: apply_first_block_cache(m, config), inputs
    )
    decider = Decider(Threshold(RelativeChange(), threshold))
    gate, computed = Gate(HoldResidual()), []
    for index in range(STEPS):
        middle = inputs[index] + head[index]
        computes = decider(Step(index), inputs[index], middle)
        out = [middle + tail[index]]
        (got,) = gate(Step(index), out, [middle], computes=computes)
        assert torch.equal(got, wanted[index])
        computed += [index] * computes
    assert computed == ran
    if threshold == 0.1:
        assert 1 < len(ran) < STEPS


def decide(values: list[float], threshold: float, **options: Any) -> list[int]:
    """The steps that are computed when one number is observed."""
    decider = Decider(Threshold(RelativeChange(**options), threshold))
    return [
        index
        for index, value in enumerate(values)
        if decider(Step(index), torch.tensor([value]))
    ]


def test_slow_drift_adds_up_against_the_last_computed_step() -> None:
    # 4 % a step: the third step after a computed one is 12 % away from it.
    assert decide([1.0, 1.04, 1.08, 1.12, 1.16, 1.2], 0.1) == [0, 3]


def test_a_threshold_of_zero_always_computes() -> None:
    assert decide([1.0, 1.0, 1.0], 0.0) == [0, 1, 2]


def test_a_score_at_the_threshold_computes_if_inclusive() -> None:
    assert decide([1.0, 1.5], 0.5) == [0]
    assert decide([1.0, 1.5], 0.5, inclusive=True) == [0, 1]


@pytest.mark.parametrize("broken", [0.0, math.nan, math.inf])
def test_a_score_that_is_not_finite_computes(broken: float) -> None:
    assert decide([broken, 1.0, 1.0], 0.5)[:2] == [0, 1]


def test_runs_are_limited() -> None:
    assert decide([1.0] * 8, 1.0, max_run=2) == [0, 3, 6]


def test_reuses_are_limited() -> None:
    assert decide([1.0] * 6, 1.0, max_reused=2) == [0, 3, 4, 5]


def test_the_sum_of_scores_is_limited_and_starts_over() -> None:
    values = [1.0, 1.25, 1.25, 1.25, 1.25, 1.25]
    # 0.25 and 0.25 reach 0.5, so that the third step computes; then nothing changes.
    assert decide(values, 1.0, max_drift=0.5) == [0, 3]


def test_limits_go_together() -> None:
    assert decide([1.0] * 8, 1.0, max_run=1, max_reused=2) == [0, 2, 4, 5, 6, 7]


def test_forced_steps_are_not_asked_and_are_compared_with() -> None:
    decider = Decider(Threshold(RelativeChange(), 0.1, Ends(3)))
    values = [1.0, 2.0, 4.0, 4.1, 4.2]
    asked = [decider(Step(i), torch.tensor([v])) for i, v in enumerate(values)]
    assert asked == [True, True, True, False, False]
    assert decider.scores[:3] == [math.inf] * 3


def test_there_are_counts_only_if_there_are_limits() -> None:
    observed = [torch.zeros(2, 3), torch.zeros(2, 3)]
    assert len(RelativeChange().initial(observed)) == 1
    value, counts = RelativeChange(max_run=1).initial(observed)
    assert value.shape == (2, 3)
    assert counts.shape == (3,)


@pytest.mark.parametrize("name", ["max_run", "max_reused"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_limits_of_steps_are_positive(name: str, value: object) -> None:
    with pytest.raises(PolicyError, match="positive integer"):
        RelativeChange(HeadStream(), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, math.nan, "0.1"])
def test_limits_of_drift_are_not_negative(value: object) -> None:
    with pytest.raises(PolicyError, match="a threshold must be"):
        RelativeChange(max_drift=value)  # type: ignore[arg-type]
