"""A change in mid-generation: the loop keeps its place, and computes once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import graphcache
from graphcache import teacache
from graphcache.policy import (
    Attention,
    Blocks,
    HoldResidual,
    Interval,
    LinearExtrapolation,
    Mask,
    Policy,
    RelativeChange,
    Taylor,
    TaylorResidual,
    Threshold,
)
from graphcache.policy.decisions import Warmed
from graphcache.policy.predictors import LinearResidual
from tests.models import same, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC

STEPS, CHANGE = 12, 5
MASK = (1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1)


def compiled(policy: Any) -> Any:
    return graphcache.compile(tiny(depth=3), policy, backend="eager")


def run(
    module: Any, steps: range, *, tokens: int = 3, batch: int = 2, **place: Any
) -> list[Tensor]:
    """Some steps of a loop."""
    inputs = tiny_inputs(tokens=tokens, batch=batch)
    outputs = []
    with torch.no_grad():
        for step in steps:
            inputs["timestep"] = torch.full((batch,), 990.0 - 80.0 * step)
            if place:
                with module.cache_context("cond", step_index=step, **place):
                    (output,) = module(**inputs)
            else:
                (output,) = module(**inputs)
            outputs.append(output.clone())
            inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
    return outputs


def computed(module: Any) -> list[bool]:
    return [next(iter(r.computed.values())) for r in module.cache_stats.steps]


@pytest.mark.parametrize(
    ("change", "placed"),
    [({"batch": 1}, True), ({"batch": 1}, False), ({"tokens": 5}, False)],
)
def test_a_mask_keeps_its_places(change: dict[str, int], placed: bool) -> None:
    """Guidance in a batch that ends after some steps, and other changes of shape."""
    module = compiled(Policy("mask", Attention(), Mask(MASK, steps=STEPS)))
    place = {"num_inference_steps": STEPS} if placed else {}
    run(module, range(CHANGE), **place)
    after = run(module, range(CHANGE, STEPS), **change, **place)
    expected = [*map(bool, MASK)]
    expected[CHANGE] = True
    assert computed(module) == expected
    assert [r.index for r in module.cache_stats.steps] == [*range(STEPS)]
    # The oracle: a module that runs the second part alone.
    fresh = compiled(Policy("mask", Attention(), Mask(MASK)))
    want = run(fresh, range(CHANGE, STEPS), **change, num_inference_steps=STEPS)
    assert same(after, want)


STATIC = {
    "taylorseer": (Attention(), Warmed(4, 3), Taylor(2)),
    "taylor residual": (Blocks(head=1), Warmed(3, 2), TaylorResidual(1)),
    "fastercache": (Attention(), Interval(3), LinearExtrapolation(0.5)),
    "seacache": (Blocks(head=1), Interval(4), LinearResidual()),
}


@pytest.mark.parametrize("name", STATIC)
def test_nothing_is_predicted_from_empty_buffers(name: str) -> None:
    """The oracle is told the decisions, and runs the second part alone."""
    regions, decision, predictor = STATIC[name]
    module = compiled(Policy("p", regions, decision, predictor))
    run(module, range(CHANGE + 1))
    after = run(module, range(CHANGE + 1, STEPS + 6), tokens=5)
    decisions = computed(module)
    undisturbed = compiled(Policy("p", regions, decision, predictor))
    run(undisturbed, range(STEPS + 6))
    expected = computed(undisturbed)
    expected[CHANGE + 1] = True
    assert decisions == expected
    assert not all(decisions[CHANGE + 1 :])
    mask = Mask(tuple(map(int, decisions[CHANGE + 1 :])))
    fresh = compiled(Policy("p", regions, mask, predictor))
    assert same(after, run(fresh, range(CHANGE + 1, STEPS + 6), tokens=5))


ACCUMULATED = {
    "first block": DYNAMIC,
    "limits": Policy(
        "tail",
        Blocks(head=1),
        Threshold(RelativeChange(max_run=2, max_drift=0.8), 0.5),
        HoldResidual(),
    ),
    "teacache": teacache(0.3),
    "teacache, hoisted": teacache(0.3, timestep_only=True),
}


@pytest.mark.parametrize("name", ACCUMULATED)
def test_what_is_accumulated_starts_over_where_it_is_computed(name: str) -> None:
    policy = ACCUMULATED[name]
    module, fresh = compiled(policy), compiled(policy)
    run(module, range(CHANGE))
    after = run(module, range(CHANGE, STEPS), tokens=5)
    assert same(after, run(fresh, range(CHANGE, STEPS), tokens=5))
    assert computed(module)[CHANGE:] == computed(fresh)
    assert not all(computed(fresh))


def test_a_change_back_reuses_nothing_of_before() -> None:
    module = compiled(Policy("p", Attention(), Mask((1, 0, 0, 0, 0, 0, 0, 0))))
    for step, tokens in enumerate((3, 3, 5, 3, 3, 5, 5)):
        run(module, range(step, step + 1), tokens=tokens)
    assert computed(module) == [True, False, True, True, False, True, False]


def test_a_fresh_step_is_told_from_a_first_one() -> None:
    step = graphcache.policy.Step(6, begun=6)
    assert step.fresh
    assert (step.index, step.age) == (6, 0)
    assert graphcache.policy.Step(7, begun=6).age == 1
    assert graphcache.policy.Step(0).fresh
