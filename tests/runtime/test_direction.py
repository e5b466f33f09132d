"""Mochi: a loop whose timestep argument counts up, and no callback that counts down."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from diffusers import PyramidAttentionBroadcastConfig

import graphcache
from graphcache import never_reuse
from tests.models import same
from tests.zoo import ZOO, Clock, denoise, denoise_in_turn, make

MOCHI = ZOO["mochi"]
STEPS = 12
SKIPS = {
    "spatial_attention_block_skip_range": 2,
    "spatial_attention_timestep_skip_range": (100, 700),
}


def compiled(callback: Clock | None = None, **kwargs: Any) -> Any:
    config = PyramidAttentionBroadcastConfig(
        **SKIPS, current_timestep_callback=callback
    )
    return graphcache.compile(make(MOCHI), config, backend="eager", **kwargs)


@cache
def with_callback(seed: int = 1) -> tuple[list[Any], list[dict[str, bool]]]:
    """The outputs and the decisions with the callback of Mochi's pipeline."""
    clock = Clock()
    subject = compiled(clock)
    outputs = denoise(subject, MOCHI, STEPS, clock=clock, seed=seed)
    return outputs, [record.computed for record in subject.cache_stats.steps]


def test_pab_is_as_with_the_callback() -> None:
    """The window is not symmetric: this holds in the callback's units alone."""
    subject = compiled()
    outputs, decisions = with_callback()
    assert {computed["spatial"] for computed in decisions} == {True, False}
    for context in (None, "cond_uncond", None):
        subject.cache_stats.clear()
        assert same(denoise(subject, MOCHI, STEPS, context=context), outputs)
        assert [r.computed for r in subject.cache_stats.steps] == decisions


def test_streams_in_turn_are_as_with_the_callback() -> None:
    subject = compiled()
    for contexts in ((None, None), ("cond", "uncond")):
        both = denoise_in_turn(subject, MOCHI, STEPS, contexts=contexts)
        for seed, outputs in zip((1, 2), both, strict=True):
            assert same(outputs, with_callback(seed)[0])


def test_its_scheduler_does_as_well() -> None:
    scheduler = MOCHI.scheduler()
    tiny = replace(MOCHI, scheduler=lambda: scheduler)
    subject = compiled(scheduler=scheduler)
    for context in (None, "cond_uncond"):
        subject.cache_stats.clear()
        outputs = denoise(subject, tiny, STEPS, context=context)
        assert same(outputs, with_callback()[0])
        timesteps = [record.timestep for record in subject.cache_stats.steps]
        assert timesteps == sorted(timesteps, reverse=True)


def test_never_reuse_is_the_module() -> None:
    subject: Any = graphcache.compile(make(MOCHI), never_reuse(), backend="eager")
    expected = denoise(make(MOCHI), MOCHI, 4, context=None)
    for context in (None, "cond_uncond"):
        subject.cache_stats.clear()
        assert same(denoise(subject, MOCHI, 4, context=context), expected)
        indices = [record.index for record in subject.cache_stats.steps]
        assert indices == [0, 1, 2, 3]
