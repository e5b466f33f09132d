"""Accumulated change: TeaCache's indicator against the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from graphcache.errors import PolicyError
from graphcache.policy import AccumulatedChange, Step, Threshold
from graphcache.policy.decisions import Ends
from tests.policy.gates import Decider, drifting

FLUX = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
STEPS = 16


@pytest.mark.parametrize("coefficients", [(1.0, 0.0), FLUX])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_and_decisions_follow_the_formula(
    coefficients: tuple[float, ...], absolute: bool, dtype: torch.dtype
) -> None:
    values = [value.to(dtype) for value in drifting(STEPS, pace=0.05)]
    indicator = AccumulatedChange(coefficients=coefficients, absolute=absolute)
    decider = Decider(Threshold(indicator, 0.3, Ends(1, 1, STEPS)))
    rescale = np.poly1d(coefficients)
    total, before, computed = 0.0, None, []
    for index, value in enumerate(values):
        computes = decider(Step(index), value)
        if before is not None:
            now, then = value.double(), before.double()
            change = rescale(float((now - then).abs().mean() / then.abs().mean()))
            total += abs(change) if absolute else change
        forced = index in (0, STEPS - 1)
        if not forced:
            assert decider.scores[-1] == pytest.approx(total, rel=1e-4)
        assert computes == (forced or total >= 0.3)
        total, before = 0.0 if computes else total, value
        computed.append(computes)
    assert 2 < sum(computed) < STEPS


def test_polynomials_that_dip_below_zero_lower_the_sum_unless_absolute() -> None:
    values = [torch.tensor([value]) for value in (1.0, 1.5, 1.5)]
    for absolute, wanted in ((False, -0.5), (True, 0.5)):
        indicator = AccumulatedChange(coefficients=(-1.0, 0.0), absolute=absolute)
        decider = Decider(Threshold(indicator, 9.0))
        for index, value in enumerate(values):
            decider(Step(index), value)
        assert decider.scores[1:] == [wanted, wanted]


def test_what_is_not_finite_computes() -> None:
    decider = Decider(Threshold(AccumulatedChange(), 9.0))
    values = [0.0, 1.0, 1.0, math.nan, 1.0, 1.0]
    asked = [decider(Step(i), torch.tensor([v])) for i, v in enumerate(values)]
    assert asked == [True, True, False, True, True, False]


@pytest.mark.parametrize("given", [(), (math.nan,), ("a",), (1.0, math.inf)])
def test_coefficients_are_finite_numbers(given: tuple[object, ...]) -> None:
    with pytest.raises(PolicyError, match="coefficients of a polynomial"):
        AccumulatedChange(coefficients=given)  # type: ignore[arg-type]
