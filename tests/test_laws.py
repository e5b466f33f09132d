"""Laws that hold for every policy, over random models, schedules and predictors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import graphcache
from graphcache.policy import (
    Attention,
    Blocks,
    EachBlock,
    HoldOutput,
    HoldResidual,
    Interval,
    LinearExtrapolation,
    Mask,
    Model,
    Modules,
    Policy,
    Taylor,
    TaylorResidual,
    Threshold,
    Warmed,
)
from graphcache.policy.indicators import AccumulatedChange, RelativeChange
from graphcache.policy.probes import HeadStream, Latents, TimestepEmbedding
from tests.models import SoftmaxAttention, TinyAttention, run_loop, same, tiny

STEPS = 7
FEW = settings(max_examples=4, deadline=None, derandomize=True)
models = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "depth": st.integers(2, 3),
        "cross": st.booleans(),
        "attention": st.sampled_from([TinyAttention, SoftmaxAttention]),
    }
)
regions = st.sampled_from(
    [
        Attention(),
        EachBlock(),
        Blocks(),
        Blocks(head=1),
        Model(),
        Modules((r"blocks\.\d+\.ff",)),
    ]
)
predictors = st.sampled_from(
    [
        HoldOutput(),
        HoldResidual(),
        LinearExtrapolation(0.5),
        Taylor(2),
        TaylorResidual(1),
    ]
)
schedules = st.one_of(
    st.builds(Interval, st.integers(1, 3), st.none() | st.just((100.0, 900.0))),
    st.builds(Warmed, st.integers(1, 3), st.integers(0, 2)),
    st.builds(Mask, st.lists(st.booleans(), min_size=3, max_size=7).map(tuple)),
)
indicators = st.sampled_from(
    [
        RelativeChange(HeadStream(1)),
        RelativeChange(HeadStream(1), inclusive=True, max_run=2),
        AccumulatedChange(Latents()),
        AccumulatedChange(TimestepEmbedding(), (1.0, 0.01)),
    ]
)
static = st.builds(Policy, st.just("p"), regions, schedules, predictors)
dynamic = st.builds(
    lambda indicator, threshold, predictor: Policy(
        "p", Blocks(head=1), Threshold(indicator, threshold), predictor
    ),
    indicators,
    st.sampled_from([0.02, 0.1, 0.3, 1.0]),
    predictors,
)


def run(
    kwargs: dict[str, Any], config: object, **options: Any
) -> tuple[list[Tensor], list[bool]]:
    """The outputs of a loop, and at which steps the policy computed."""
    options = {"backend": "eager", **options}
    subject = graphcache.compile(tiny(**kwargs), config, **options)
    outputs = run_loop(subject, STEPS)
    return outputs, [record.computed["p"] for record in subject.cache_stats.steps]


@FEW
@given(models, regions, predictors)
def test_a_policy_that_always_computes_is_the_module(
    kwargs: dict[str, Any], selector: Any, predictor: Any
) -> None:
    policy = Policy("p", selector, Interval(1), predictor)
    assert same(run(kwargs, policy)[0], run_loop(tiny(**kwargs), STEPS))


@FEW
@given(models, indicators, predictors)
def test_a_threshold_of_zero_is_the_module(
    kwargs: dict[str, Any], indicator: Any, predictor: Any
) -> None:
    policy = Policy("p", Blocks(head=1), Threshold(indicator, 0.0), predictor)
    outputs, computed = run(kwargs, policy)
    assert all(computed)
    assert same(outputs, run_loop(tiny(**kwargs), STEPS))


@FEW
@given(models, st.sampled_from([RelativeChange(), AccumulatedChange(Latents())]))
def test_an_infinite_threshold_computes_the_first_step_alone(
    kwargs: dict[str, Any], indicator: Any
) -> None:
    threshold = Threshold(indicator, float("inf"))
    policy = Policy("p", Blocks(head=1), threshold, HoldResidual())
    for lowering in ("split", "conditional"):
        assert run(kwargs, policy, lowering=lowering)[1] == [True] + [False] * 6


@FEW
@given(models, static)
def test_lowerings_of_a_static_policy_agree(
    kwargs: dict[str, Any], policy: Policy
) -> None:
    runs = [
        run(kwargs, policy, lowering=lowering)
        for lowering in ("specialize", "conditional")
    ]
    runs.append(run(kwargs, policy, backend="reference"))
    assert runs[0][1] == runs[1][1] == runs[2][1]
    assert same(runs[0][0], runs[1][0])
    assert same(runs[0][0], runs[2][0])


@FEW
@given(models, dynamic)
def test_lowerings_of_a_dynamic_policy_agree_and_are_the_mask_of_its_decisions(
    kwargs: dict[str, Any], policy: Policy
) -> None:
    split, decisions = run(kwargs, policy, lowering="split")
    for options in ({"lowering": "conditional"}, {"backend": "reference"}):
        other, same_decisions = run(kwargs, policy, **options)
        assert same_decisions == decisions
        assert same(other, split)
    mask = Policy("p", policy.regions, Mask(tuple(decisions)), policy.predictor)
    specialised, _ = run(kwargs, mask, lowering="specialize")
    assert same(specialised, split)


@FEW
@given(models, static, static)
def test_mixtures_agree_under_every_lowering(
    kwargs: dict[str, Any], first: Policy, second: Policy
) -> None:
    inner = Policy("p", Attention(), first.decision, first.predictor)
    outer = Policy("q", Blocks(head=1), second.decision, HoldResidual())
    runs = [
        run(kwargs, [inner, outer], **options)
        for options in (
            {"lowering": "specialize"},
            {"lowering": "conditional"},
            {"backend": "reference"},
        )
    ]
    assert same(runs[0][0], runs[1][0])
    assert same(runs[0][0], runs[2][0])
    assert runs[0][1] == runs[1][1] == runs[2][1]


@pytest.mark.parametrize("lowering", ["split", "conditional"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_computes(lowering: str, value: float) -> None:
    policy = Policy(
        "p", Blocks(head=1), Threshold(RelativeChange(), 10.0), HoldResidual()
    )
    subject = graphcache.compile(tiny(), policy, backend="eager", lowering=lowering)
    inputs = {
        "hidden_states": torch.ones(2, 3, 8),
        "encoder_hidden_states": torch.ones(2, 4, 8),
    }
    with torch.no_grad():
        for timestep in (900.0, 800.0, 700.0):
            if timestep == 800.0:
                inputs["hidden_states"] = torch.full((2, 3, 8), value)
            subject(**inputs, timestep=torch.full((2,), timestep))
    computed = [record.computed["p"] for record in subject.cache_stats.steps]
    # What was remembered of such a step is not finite either.
    assert computed == [True, True, True]


def test_static_policies_read_nothing_and_dynamic_ones_one_score_a_step() -> None:
    policies = [
        Policy("a", Modules((r"blocks\.\d+\.ff",)), Interval(2)),
        Policy("p", Blocks(head=1), Threshold(RelativeChange(), 0.5), HoldResidual()),
    ]
    for lowering in ("split", "conditional"):
        subject = graphcache.compile(
            tiny(), policies[1:], backend="eager", lowering=lowering
        )
        run_loop(subject, STEPS)
        assert subject.cache_stats.host_reads == STEPS - 1
    subject = graphcache.compile(tiny(), policies[:1], backend="eager")
    run_loop(subject, STEPS)
    assert subject.cache_stats.host_reads == 0
