"""Linear extrapolation against diffusers' hooks and against the formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.faster_cache import FasterCacheBlockHook
from torch import Tensor, nn

from graphcache.errors import PolicyError
from graphcache.policy import (
    Interval,
    LinearExtrapolation,
    LinearResidual,
    Scalar,
    Step,
)
from tests.policy.gates import Gate, drifting

WINDOW = (100, 680)
RISING = Scalar("rising", lambda step: step.index / 10)


class Told(nn.Module):
    """Gives what it is told."""

    def __init__(self, outputs: list[Tensor]) -> None:
        super().__init__()
        self.outputs, self.step = outputs, 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The output of the step."""
        return self.outputs[self.step]


def by_hook(
    outputs: list[Tensor], times: list[float], weight: Callable[[int], float]
) -> list[Tensor]:
    """What the hook of diffusers gives for a model whose guidance is distilled."""
    module = Told(outputs)
    hook = FasterCacheBlockHook(
        3,
        WINDOW,
        True,
        lambda _: weight(module.step),
        lambda: times[module.step],
    )
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(hook, "attention")
    results = []
    for output in outputs:
        results.append(module(output))
        module.step += 1
    return results


@pytest.mark.parametrize("weight", [0.5, 0.3, RISING])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_diffusers_bit_for_bit(
    weight: float | Scalar, dtype: torch.dtype
) -> None:
    outputs = [value.to(dtype) for value in drifting(14)]
    times = [999.0 - 70 * index for index in range(14)]

    def weight_at(index: int) -> float:
        return RISING.of(Step(index)) if isinstance(weight, Scalar) else weight

    wanted = by_hook(outputs, times, weight_at)
    gate, decision = Gate(LinearExtrapolation(weight)), Interval(3, WINDOW)
    for index, (output, time) in enumerate(zip(outputs, times, strict=True)):
        step = Step(index, time)
        (got,) = gate(step, [output], computes=decision.computes(step))
        assert torch.equal(got, wanted[index])


def test_after_one_output_there_is_nothing_to_go_on_from() -> None:
    first, second, *_ = drifting(2)
    gate = Gate(LinearExtrapolation(0.5))
    gate(Step(0), [first], computes=True)
    (got,) = gate(Step(1), [second], computes=False)
    assert torch.equal(got, first)


def test_predictions_enter_the_history() -> None:
    gate = Gate(LinearExtrapolation(1.0))
    for index, value in enumerate((0.0, 2.0)):
        gate(Step(index), [torch.full((1,), value)], computes=True)
    found = [
        gate(Step(i), [torch.zeros(1)], computes=False)[0].item() for i in (2, 3, 4)
    ]
    assert found == [4.0, 6.0, 8.0]


@pytest.mark.parametrize("weight", [math.nan, math.inf, "0.5", None])
def test_weights_are_finite_numbers_or_scalars(weight: object) -> None:
    with pytest.raises(PolicyError, match="finite number or a Scalar"):
        LinearExtrapolation(weight)  # type: ignore[arg-type]


def test_residuals_go_on_in_a_line_over_uneven_steps() -> None:
    before, after = drifting(10, seed=1), drifting(10, seed=2)
    other = drifting(10, (3,), seed=3)
    gate = Gate(LinearResidual())
    history: list[tuple[int, Tensor, Tensor]] = []
    for index in range(10):
        computes = index in (0, 2, 3, 7)
        pair = [after[index], other[index]]
        got = gate(Step(index), pair, [before[index], None], computes=computes)
        if computes:
            history.append((index, after[index] - before[index], other[index]))
            history = history[-2:]
            continue
        step, added, held = history[-1]
        if len(history) > 1:
            earlier, first, second = history[0]
            scale = (index - step) / (step - earlier)
            added = added + (added - first) * scale
            held = held + (held - second) * scale
        assert torch.equal(got[0], before[index] + added)
        assert torch.equal(got[1], held)
