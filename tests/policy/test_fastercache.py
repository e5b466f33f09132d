"""The FasterCache preset."""

from __future__ import annotations

import math
from typing import Any

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import (
    GuidanceConfig,
    Interval,
    LinearExtrapolation,
    Scalar,
    Step,
    configuration,
    fastercache,
)
from graphcache.policy.fastercache import Inside, high_weight, low_weight


def test_attention_is_extrapolated_by_kind() -> None:
    (alone,) = fastercache()
    assert alone.name == "spatial"
    assert alone.decision == Interval(2, (-1, 681))
    assert alone.predictor == LinearExtrapolation(0.5)
    assert alone.regions.flows == ("self", "joint")
    assert alone.regions.exclude == ()
    spatial, temporal = fastercache(3, 4, window=None, weight=0.2)
    assert spatial.regions.exclude
    assert temporal.regions.include == spatial.regions.exclude
    assert temporal.decision == Interval(4)
    assert temporal.predictor == LinearExtrapolation(0.2)


def test_weights_may_change_along_the_loop() -> None:
    rising = Scalar("rising", lambda step: step.index / 50)
    (policy,) = fastercache(weight=rising)
    assert policy.predictor.scalars[1] is rising


def test_guidance_comes_last_and_is_read_as_such() -> None:
    guidance = GuidanceConfig(every=4)
    parts = fastercache(guidance=guidance)
    assert parts[-1] is guidance
    read = configuration(parts)
    assert [policy.name for policy in read.policies] == ["spatial"]
    assert read.guidance is guidance
    assert fastercache(None, guidance=guidance) == (guidance,)


def test_defaults_of_guidance_are_those_of_diffusers() -> None:
    guidance = GuidanceConfig()
    assert guidance.decision == Interval(5, (-1, 641))
    assert guidance.predictor.tensor_format == "BCFHW"
    low, high = guidance.predictor.scalars
    times = [950.0, 901.0, 500.0, 300.0, 99.0, 50.0]
    steps = [Step(1, time) for time in times]
    assert [low.of(step) for step in steps] == [1.0, 1.0, 1.1, 1.1, 1.0, 1.0]
    assert [high.of(step) for step in steps] == [1.0, 1.0, 1.0, 1.1, 1.1, 1.1]


def test_weights_inside_a_window_need_the_timestep() -> None:
    with pytest.raises(PolicyError, match="needs the timestep of each step"):
        low_weight().of(Step(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial": None}, "at least one of spatial="),
        ({"spatial": 0}, "positive integer"),
        ({"temporal": -1}, "positive integer"),
        ({"window": (700, 100)}, "not ordered"),
        ({"weight": math.nan}, "finite number or a Scalar"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        fastercache(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "positive integer"),
        ({"window": (700, 100)}, "not ordered"),
        ({"tensor_format": "BSC"}, "unknown tensor format"),
    ],
)
def test_bad_guidance_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        GuidanceConfig(**options)


@pytest.mark.parametrize("weight", [-1.0, math.nan, "1"])
def test_weights_of_deltas_are_numbers_from_zero(weight: Any) -> None:
    with pytest.raises(PolicyError, match="weight of a delta must be a number"):
        high_weight(weight)
    with pytest.raises(PolicyError, match="not ordered"):
        Inside(1.0, (5, 1))
