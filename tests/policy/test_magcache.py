"""The MagCache preset: its schedule against diffusers' hooks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MagCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, apply_mag_cache, nearest_interp
from hypothesis import given, settings
from hypothesis import strategies as st

from graphcache.errors import PolicyError
from graphcache.policy import Blocks, HoldResidual, Mask, Step, magcache
from graphcache.policy.magcache import resampled
from tests.policy.hooked import Stack, run

FLUX_STEPS = (0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 21, 24, 26, 27)


def by_hooks(config: MagCacheConfig, calls: int) -> list[int]:
    """The calls that the hooks compute."""
    inputs = [torch.zeros(1, 2, 3)] * calls
    stack = Stack(inputs, inputs)
    return run(stack, lambda module: apply_mag_cache(module, config), inputs)[1]


def by_policy(calls: int, ratios: Any, **options: Any) -> list[int]:
    """The calls that the policy computes."""
    decision = magcache(ratios, **options).decision
    return [index for index in range(calls) if decision.computes(Step(index))]


def test_flux_at_28_steps() -> None:
    assert tuple(by_policy(28, FLUX_MAG_RATIOS)) == FLUX_STEPS
    policy = magcache(FLUX_MAG_RATIOS)
    assert policy.regions == Blocks()
    assert policy.predictor == HoldResidual()
    assert isinstance(policy.decision, Mask)
    assert policy.decision.steps == 28


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0.75, 1.25, width=32), min_size=1, max_size=20),
    st.integers(1, 24),
    st.floats(0.0, 0.5),
    st.integers(0, 4),
    st.floats(0.0, 1.0),
)
def test_schedules_are_those_of_diffusers(
    ratios: list[float], steps: int, threshold: float, max_skip: int, retention: float
) -> None:
    config = MagCacheConfig(threshold, max_skip, retention, steps, ratios)
    options = {"threshold": threshold, "max_skip": max_skip, "retention": retention}
    # The hooks start over after the last step.
    calls = 2 * steps + 3
    assert by_policy(calls, ratios, steps=steps, **options) == by_hooks(config, calls)


def test_errors_next_to_the_threshold_fall_on_the_same_side() -> None:
    # 1 - 0.99 is a little less than 0.01 in fp32, and a little more in f64.
    ratios = [1.01, 0.99, 1.02, 1.03]
    single, double = torch.tensor(ratios), torch.tensor(ratios, dtype=torch.float64)
    for given_ratios, wanted in ((single, [0, 2, 3]), (double, [0, 1, 2, 3])):
        config = MagCacheConfig(0.01, 3, 0.0, 4, given_ratios)
        assert by_policy(4, given_ratios, threshold=0.01, retention=0.0) == wanted
        assert by_hooks(config, 4) == wanted


@pytest.mark.parametrize("count", [1, 2, 5, 27, 28, 29, 50])
def test_ratios_are_resampled_as_by_diffusers(count: int) -> None:
    wanted = nearest_interp(FLUX_MAG_RATIOS, count)
    assert torch.equal(resampled(FLUX_MAG_RATIOS, count), wanted)


@pytest.mark.parametrize(
    "ratios",
    [[1, 1, 1], torch.ones(3, dtype=torch.float64), np.ones(3), (1.0, 1.0, 1.0)],
)
def test_ratios_are_any_list_of_numbers(ratios: Any) -> None:
    assert magcache(ratios).decision.steps == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": []}, "one number per step"),
        ({"ratios": [[1.0, 1.1], [1.0, 1.2]]}, r"shape \(2, 2\)"),
        ({"ratios": [1.0, 0.0]}, "are positive"),
        ({"ratios": [1.0, -1.0]}, "are positive"),
        ({"ratios": [1.0, math.nan]}, "are positive"),
        ({"ratios": [1.0, math.inf]}, "are positive"),
        ({"ratios": None}, "are numbers, not None"),
        ({"ratios": ["a"]}, "are numbers, not"),
        ({"ratios": [1.0], "steps": 0}, "number of steps"),
        ({"ratios": [1.0], "threshold": -1}, "a threshold must be"),
        ({"ratios": [1.0], "max_skip": -1}, "reused in a row"),
        ({"ratios": [1.0], "retention": 1.5}, "must be a number from 0 to 1"),
        ({"ratios": [1.0], "retention": math.nan}, "must be a number from 0 to 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        magcache(**options)
