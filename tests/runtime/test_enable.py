"""Disabling and enabling the cache, as diffusers' models do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig
from torch import nn

import graphcache
from graphcache import BackendError, PolicyError, pyramid_attention_broadcast
from graphcache.policy import Mask, Policy, seacache, step_mask, teacache
from graphcache.policy.regions import Attention
from tests.models import run_loop, same, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC
from tests.zoo import ZOO, denoise, make

every_policy = pytest.mark.parametrize("policy", [STATIC, DYNAMIC])


def compiled(config: object, **kwargs: Any) -> Any:
    return graphcache.compile(tiny(), config, **{"backend": "eager", **kwargs})


def held(subject: Any) -> list[dict[str, Any]]:
    streams = subject._graphcache_runner.clock.streams
    return [stream.buffers for stream in streams.values()]


@every_policy
@pytest.mark.parametrize("lowering", ["auto", "conditional"])
def test_disabled_is_the_module_bit_for_bit(policy: Policy, lowering: str) -> None:
    subject = compiled(policy, lowering=lowering)
    plain = run_loop(tiny(), 9)
    cached = run_loop(subject, 9)
    assert not same(cached, plain)
    subject.disable_cache()
    assert not subject.is_cache_enabled
    assert same(run_loop(subject, 9), plain)
    assert held(subject) == [{}]
    subject.enable_cache()
    assert subject.is_cache_enabled
    assert same(run_loop(subject, 9), cached)
    assert subject.cache_stats.captures == 1


@every_policy
def test_no_state_survives_a_change(policy: Policy) -> None:
    """In the middle of a loop, at every step of it."""
    for change in range(1, 5):
        subject, plain = compiled(policy), tiny()
        with torch.no_grad():
            for step in range(change):
                subject(**tiny_inputs(500 - step))
            subject.disable_cache()
            assert held(subject) == []
            for step in range(2):
                inputs = tiny_inputs(400 - step, seed=2)
                assert torch.equal(subject(**inputs)[0], plain(**inputs)[0])
            subject.enable_cache()
            assert held(subject) == []
            inputs = tiny_inputs(300, seed=3)
            assert torch.equal(subject(**inputs)[0], plain(**inputs)[0])


def test_what_was_reused_and_what_not_is_counted() -> None:
    subject = compiled(STATIC)
    subject.disable_cache()
    run_loop(subject, 6)
    assert subject.cache_stats.reused == {}
    assert subject.cache_stats.computed == {"attention": 12}
    assert [record.index for record in subject.cache_stats.steps] == list(range(6))


def test_disabled_asks_for_no_scores() -> None:
    subject = compiled(DYNAMIC)
    subject.disable_cache()
    run_loop(subject, 6)
    assert subject.cache_stats.host_reads == 0
    assert not any(record.scores for record in subject.cache_stats.steps)


def test_twice_is_a_warning_and_an_error_as_in_diffusers() -> None:
    subject = compiled(STATIC)
    with pytest.raises(ValueError, match="enabled already"):
        subject.enable_cache()
    subject.disable_cache()
    with pytest.warns(UserWarning, match="disabled already"):
        subject.disable_cache()


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_another_config_needs_no_disabling(steps: int) -> None:
    """Also in the middle of a loop: nothing of the first is read by the second."""
    subject = compiled(STATIC)
    with torch.no_grad():
        for step in range(steps):
            subject(**tiny_inputs(500 - step))
    subject.enable_cache(DYNAMIC)
    assert subject.is_cache_enabled
    assert held(subject) == []
    assert same(run_loop(subject, 9), run_loop(compiled(DYNAMIC), 9))
    subject.enable_cache(STATIC)
    assert same(run_loop(subject, 9), run_loop(compiled(STATIC), 9))


def test_a_bad_config_leaves_the_cache_enabled() -> None:
    subject = compiled(STATIC, lowering="specialize")
    expected = run_loop(subject, 6)
    for config, error in (("pab", PolicyError), (DYNAMIC, BackendError)):
        with pytest.raises(error):
            subject.enable_cache(config)
        assert subject.is_cache_enabled
    assert same(run_loop(subject, 6), expected)
    assert subject.cache_stats.captures == 1


@pytest.mark.parametrize(
    "config",
    [
        DYNAMIC,
        [DYNAMIC, STATIC],
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
    ],
)
def test_another_config_is_compiled_at_the_next_call(config: object) -> None:
    subject = compiled(STATIC)
    run_loop(subject, 9)
    subject.disable_cache()
    run_loop(subject, 2)
    subject.enable_cache(config)
    assert subject.cache_stats.captures == 1
    assert same(run_loop(subject, 9), run_loop(compiled(config), 9))
    assert subject.cache_stats.captures == 2


def test_the_callback_goes_with_the_config() -> None:
    """Without one, the timestep is the argument's again."""
    subject = compiled(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 7
        )
    )
    with torch.no_grad():
        subject(**tiny_inputs(500))
        subject.disable_cache()
        subject.enable_cache(pyramid_attention_broadcast(spatial=2))
        subject(**tiny_inputs(400))
    assert [record.timestep for record in subject.cache_stats.steps] == [7, 400]


@pytest.mark.parametrize(
    ("config", "error"),
    [("pab", PolicyError), ([], PolicyError), (DYNAMIC, BackendError)],
)
def test_a_bad_config_changes_nothing(config: object, error: type[Exception]) -> None:
    subject = compiled(STATIC, lowering="specialize")
    expected = run_loop(subject, 6)
    subject.disable_cache()
    with pytest.raises(error):
        subject.enable_cache(config)
    assert not subject.is_cache_enabled
    assert dict(subject.cache_thresholds) == {}
    subject.enable_cache()
    assert same(run_loop(subject, 6), expected)
    assert subject.cache_stats.captures == 1


def test_thresholds_are_those_of_the_config() -> None:
    subject = compiled(STATIC)
    thresholds = subject.cache_thresholds
    assert dict(thresholds) == {}
    subject.disable_cache()
    subject.enable_cache(DYNAMIC)
    assert dict(thresholds) == {"tail": 0.3}
    assert subject.cache_thresholds is thresholds


def test_a_copy_has_the_same_config_thresholds_and_switch() -> None:
    subject = compiled(STATIC)
    subject.disable_cache()
    subject.enable_cache(DYNAMIC)
    subject.cache_thresholds["tail"] = 0.1
    expected = run_loop(subject, 9)
    subject.disable_cache()
    twin = copy.deepcopy(subject)
    assert not twin.is_cache_enabled
    assert dict(twin.cache_thresholds) == {"tail": 0.1}
    twin.enable_cache()
    assert same(run_loop(twin, 9), expected)
    assert not subject.is_cache_enabled


class Timeless(nn.Module):
    """Blocks without a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """f32[2, 3, 8] to the same."""
        inputs = {**tiny_inputs(), "hidden_states": x}
        return self.inner(**inputs)


def test_disabled_needs_to_know_nothing_of_the_step() -> None:
    """Neither streams, nor a timestep, nor the number of steps, nor a noise level."""
    module = Timeless().eval()
    subject: Any = graphcache.compile(module, STATIC, backend="eager")
    x = tiny_inputs()["hidden_states"]
    with torch.no_grad():
        with pytest.raises(PolicyError, match="cannot be told apart"):
            subject(x)
        subject.disable_cache()
        for _ in range(2):
            assert torch.equal(subject(x)[0], module(x)[0])
    masked = compiled(Policy("mask", Attention(), Mask((1, 0), steps=2)))
    masked.disable_cache()
    with torch.no_grad(), masked.cache_context("c", num_inference_steps=9):
        assert torch.equal(masked(**tiny_inputs())[0], tiny()(**tiny_inputs())[0])


@pytest.mark.parametrize("policy", [seacache(), teacache(9.0, timestep_only=True)])
def test_disabled_needs_neither_a_noise_level_nor_a_plan(policy: Policy) -> None:
    wan = ZOO["wan"]
    subject: Any = graphcache.compile(make(wan), policy, backend="eager")
    subject.disable_cache()
    assert same(denoise(subject, wan, 3), denoise(make(wan), wan, 3))


def test_a_change_of_the_module_while_disabled_is_seen() -> None:
    subject, plain = compiled(step_mask((1, 0, 0))), tiny()
    subject.disable_cache()
    run_loop(subject, 2)
    for module in (subject, plain):
        module.blocks[1].gain = 2.0
    assert same(run_loop(subject, 3), run_loop(plain, 3))
