"""Spectral change against diffusers' SeaCache."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import SeaCacheConfig
from diffusers.hooks.sea_cache import (
    SeaCacheContextState,
    SeaCacheSharedState,
    _apply_sea_filter,
    _build_indicator,
    _SeaCacheForwardMetadata,
)
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy import SpectralChange, Step, Threshold
from graphcache.policy.decisions import Ends
from graphcache.policy.indicators.spectral import spectral_filter
from tests.policy.gates import Decider, drifting

STEPS = 16


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.37, 0.999, 1.0])
@pytest.mark.parametrize("power", [3.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_filter_is_that_of_diffusers_bit_for_bit(
    sigma: float, power: float, dtype: torch.dtype
) -> None:
    sample = torch.randn(5, 8, 6, 4).to(dtype)
    level = torch.tensor(sigma, dtype=torch.float64)
    wanted = _apply_sea_filter(sample, sigma, power)
    assert torch.equal(spectral_filter(sample, level, power), wanted)


def by_diffusers(
    config: SeaCacheConfig, values: list[Tensor], sigmas: list[float]
) -> list[bool]:
    """The decisions of diffusers, with the count of its block hook."""
    state, shared = SeaCacheContextState(), SeaCacheSharedState()
    decisions = []
    for index, (value, sigma) in enumerate(zip(values, sigmas, strict=True)):
        seen = _SeaCacheForwardMetadata(index, sigma, len(values), list(value))
        indicator = _build_indicator(config, seen)
        computes = shared.resolve_gate(state, seen, indicator, config)
        state.consecutive_cached = 0 if computes else state.consecutive_cached + 1
        decisions.append(computes)
    return decisions


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.15, 0.3, 5.0])
@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_decisions_are_those_of_diffusers(threshold: float, limit: int) -> None:
    values = drifting(STEPS, (2, 3, 4, 6, 6), pace=0.05)
    sigmas = [1.0 - index / STEPS for index in range(STEPS)]
    config = SeaCacheConfig(
        threshold=threshold,
        max_consecutive_cached=limit,
        retention_steps=2,
        cache_end_steps=3,
    )
    wanted = by_diffusers(config, values, sigmas)
    indicator = SpectralChange(max_run=limit or None)
    decider = Decider(Threshold(indicator, threshold, Ends(2, 3, STEPS)))
    got = [
        decider(Step(index, sigma=sigmas[index]), value)
        for index, value in enumerate(values)
    ]
    assert got == wanted
    if threshold == 0.15 and limit == 5:
        assert 5 < sum(got) < STEPS


def test_pictures_have_no_frames() -> None:
    latents = drifting(3, (1, 4, 8, 8))
    decider = Decider(Threshold(SpectralChange(), 9.0))
    asked = [decider(Step(i, sigma=0.5), value) for i, value in enumerate(latents)]
    assert asked == [True, False, False]
    # One frame has one frequency, the same gain for all, and the mean divides it out.
    one = SpectralChange().measure(
        [latents[1]], [torch.zeros(1, 8, 8, 4), torch.zeros(())], [torch.tensor(0.5)]
    )
    frame = _apply_sea_filter(latents[1][0].movedim(0, -1)[None], 0.5, 3.0)
    torch.testing.assert_close(one[2][0], frame[0])


def test_packed_sequences_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"this model takes \(2, 16, 8\)"):
        SpectralChange().initial([torch.zeros(2, 16, 8)])


def test_the_noise_level_has_to_be_known() -> None:
    (sigma,) = SpectralChange().scalars
    assert sigma.of(Step(0, sigma=0.25)) == 0.25
    with pytest.raises(PolicyError, match="noise level of each step is needed"):
        sigma.of(Step(0))


@pytest.mark.parametrize("power", [0.0, -3.0, math.inf, math.nan])
def test_powers_are_positive(power: float) -> None:
    with pytest.raises(PolicyError, match="power of the spectrum"):
        SpectralChange(power=power)


def test_limits_are_positive() -> None:
    with pytest.raises(PolicyError, match="reused in a row must be a positive"):
        SpectralChange(max_run=0)
