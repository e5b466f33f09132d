"""Taylor expansions against diffusers' own and against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy import HoldOutput, Step, Taylor, TaylorResidual, Warmed
from graphcache.policy.predictors import HoldResidual
from tests.policy.gates import Gate, drifting

DTYPES = [torch.float32, torch.bfloat16, torch.float64, None]


def expected(
    outputs: list[list[Tensor]], computed: list[bool], order: int, dtype: torch.dtype
) -> list[list[Tensor]]:
    """What diffusers' state gives."""
    state = TaylorSeerState(dtype, order)
    results = []
    for values, computes in zip(outputs, computed, strict=True):
        state.current_step += 1
        if computes:
            state.update(tuple(values))
        results.append(list(values) if computes else state.predict())
    return results


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_equals_diffusers_bit_for_bit(
    order: int, dtype: torch.dtype | None, own: torch.dtype
) -> None:
    steps, decision = 17, Warmed(4, 2, 15)
    outputs = [
        [left.to(own), right.to(own)]
        for left, right in zip(
            drifting(steps), drifting(steps, (5,), seed=1), strict=True
        )
    ]
    computed = [decision.computes(Step(index)) for index in range(steps)]
    wanted = expected(outputs, computed, order, dtype or own)
    gate = Gate(Taylor(order, dtype))
    for index, values in enumerate(outputs):
        got = gate(Step(index), values, computes=computed[index])
        assert all(map(torch.equal, got, wanted[index]))


def test_uneven_gaps_divide_by_the_last_one() -> None:
    computed = [True, False, True, True, False, False, False, True, False]
    outputs = [[value] for value in drifting(len(computed))]
    wanted = expected(outputs, computed, 2, torch.float32)
    gate = Gate(Taylor(2))
    for index, values in enumerate(outputs):
        (got,) = gate(Step(index), values, computes=computed[index])
        assert torch.equal(got, wanted[index][0])


def test_a_polynomial_of_the_order_is_continued_exactly() -> None:
    outputs = [torch.full((2,), 3.0 - 2.0 * index) for index in range(8)]
    gate = Gate(Taylor(1))
    for index in range(2):
        gate(Step(index), [outputs[index]], computes=True)
    for index in range(2, 8):
        (got,) = gate(Step(index), [outputs[index]], computes=False)
        assert torch.equal(got, outputs[index])


def test_order_zero_holds_the_output() -> None:
    taylor, hold = Gate(Taylor(0)), Gate(HoldOutput())
    for index, value in enumerate(drifting(5)):
        computes = index % 2 == 0
        left = taylor(Step(index), [value], computes=computes)
        right = hold(Step(index), [value], computes=computes)
        assert torch.equal(left[0], right[0])


def test_buffers_are_the_factors_and_one_clock() -> None:
    outputs = [torch.zeros(2, 3), torch.zeros(4)]
    buffers = Taylor(2, torch.bfloat16).initial(outputs, ())
    assert [tuple(b.shape) for b in buffers] == [*[(2, 3)] * 3, *[(4,)] * 3, (2,)]
    own, half = torch.float32, torch.bfloat16
    assert [b.dtype for b in buffers[:3]] == [own, half, half]
    assert buffers[-1].dtype == torch.float64


def test_residuals_are_expanded_and_added() -> None:
    before, after = drifting(9, seed=1), drifting(9, seed=2)
    other = drifting(9, (3,), seed=3)
    gate = Gate(TaylorResidual(1))
    plain = Gate(Taylor(1))
    for index in range(9):
        computes = index in (0, 1, 4)
        pair = [after[index], other[index]]
        hidden, held = gate(Step(index), pair, [before[index], None], computes=computes)
        added = [after[index] - before[index], other[index]]
        forecast = plain(Step(index), added, computes=computes)
        wanted = after[index] if computes else before[index] + forecast[0]
        assert torch.equal(hidden, wanted)
        assert torch.equal(held, forecast[1])


def test_residual_of_order_zero_is_the_held_one() -> None:
    before, after = drifting(4, seed=1), drifting(4, seed=2)
    taylor, hold = Gate(TaylorResidual(0)), Gate(HoldResidual())
    for index in range(4):
        given = Step(index), [after[index]], [before[index]]
        left = taylor(*given, computes=index == 0)
        right = hold(*given, computes=index == 0)
        assert torch.equal(left[0], right[0])


@pytest.mark.parametrize("make", [Taylor, TaylorResidual])
@pytest.mark.parametrize("order", [-1, 1.0, True, None, math.nan])
def test_orders_are_integers_from_zero(make: type, order: object) -> None:
    with pytest.raises(PolicyError, match="order of a Taylor expansion must be"):
        make(order)


@pytest.mark.parametrize("make", [Taylor, TaylorResidual])
@pytest.mark.parametrize("dtype", [torch.int8, "bf16", 16])
def test_dtypes_are_floating_point(make: type, dtype: object) -> None:
    with pytest.raises(PolicyError, match=r"floating-point torch\.dtype or None"):
        make(1, dtype)
