"""A cache that is silently idle is warned of, once a generation, with the reason."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import graphcache
from graphcache import CacheIdleWarning, PolicyError, never_reuse, taylorseer
from graphcache import pyramid_attention_broadcast as pab
from graphcache.policy import Attention, Ends, Interval, Mask, Policy, Step
from graphcache.runtime.idle import could_reuse
from tests.models import run_loop, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC


def compiled(config: Any, **kwargs: Any) -> Any:
    return graphcache.compile(tiny(), config, backend="eager", **kwargs)


def told(subject: Any, steps: int, **kwargs: Any) -> list[str]:
    """What is warned of in one generation that ends with a reset."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_loop(subject, steps, **kwargs)
        subject._reset_stateful_cache()
    assert all(warning.category is CacheIdleWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def interrupted(subject: Any) -> None:
    run_loop(subject, 3)
    subject(unknown=1)


def tight(threshold: float) -> Policy:
    decision = type(DYNAMIC.decision)(DYNAMIC.decision.indicator, threshold)  # type: ignore[call-arg]
    return Policy("tail", DYNAMIC.regions, decision, DYNAMIC.predictor)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tight(1e-6), r"tail: the lowest score was 0\.\d+, and its threshold is 1e-06"),
        (
            pab(spatial=2, window=(0.1, 0.8)),
            "spatial: its timesteps, 0.1 to 0.8, were never met .* from 999 to 0",
        ),
    ],
)
def test_an_idle_policy_is_told_with_its_reason(config: Any, reason: str) -> None:
    subject = compiled(config)
    for _ in range(2):
        (message,) = told(subject, 6)
        assert message.startswith("the cache was idle: nothing was reused")
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(message)


def test_a_prompt_or_a_shape_that_changes_at_every_step() -> None:
    def generation(change: str) -> list[str]:
        subject = compiled(STATIC)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(4):
                tokens = 3 + step % 2 if change == "shape" else 3
                with torch.no_grad(), subject.cache_context("cond"):
                    subject(**tiny_inputs(900.0 - step, tokens=tokens, seed=step))
            subject._reset_stateful_cache()
        return [str(warning.message) for warning in caught]

    (message,) = generation("shape")
    assert "every step found empty buffers, because shapes, arguments" in message
    # A prompt that is made anew for every call tells nothing, and is no reason.
    assert generation("prompt") == []


def test_streams_of_one_generation_are_one_warning() -> None:
    subject = compiled(tight(1e-6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for step in range(4):
                for name in ("cond", "uncond"):
                    with torch.no_grad(), subject.cache_context(name):
                        subject(**tiny_inputs(900.0 - 100 * step))
    # The second generation has not ended.
    assert len(caught) == 1


def test_the_last_step_of_the_schedule_ends_a_generation() -> None:
    subject = compiled(tight(1e-6))
    for step in range(4):
        place = {"step_index": step, "num_inference_steps": 4}
        with torch.no_grad(), subject.cache_context("cond", **place):
            if step < 3:
                subject(**tiny_inputs(900.0 - 100 * step))
                continue
            with pytest.warns(CacheIdleWarning, match="lowest score"):
                subject(**tiny_inputs(900.0 - 100 * step))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject._reset_stateful_cache()


def test_a_request_that_is_left_ends_a_generation() -> None:
    subject = compiled(tight(1e-6))
    with pytest.warns(CacheIdleWarning, match="lowest score"), subject.request("r"):
        run_loop(subject, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError), subject.request("r"):
            interrupted(subject)


def test_more_calls_than_streams_are_warned_of() -> None:
    subject, fine = compiled(STATIC), compiled(never_reuse())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            fine(**tiny_inputs(500.0))
        for _ in range(8):
            subject(**tiny_inputs(500.0))
        with pytest.raises(CacheIdleWarning, match="more than eight calls"):
            subject(**tiny_inputs(500.0))


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (never_reuse(), 6),
        (STATIC, 1),
        (STATIC, 6),
        (DYNAMIC, 6),
        (tight(0.0), 6),
        # A warm-up that is longer than the loop, and a mask that computes all.
        (taylorseer(5, before=8), 6),
        (Policy("mask", Attention(), Mask((1,) * 6)), 6),
        (Policy("mask", Attention(), Mask((1, 1, 0, 0, 0))), 2),
        # The window lies where the interval computes: it was reached.
        (pab(spatial=2, window=(500, 1000)), 4),
        ([STATIC, DYNAMIC], 6),
    ],
)
def test_nothing_is_said_where_nothing_could_be_reused(config: Any, steps: int) -> None:
    assert told(compiled(config), steps) == []


def test_a_disabled_cache_and_an_aborted_generation_are_no_idle_ones() -> None:
    subject = compiled(tight(1e-6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject.disable_cache()
        run_loop(subject, 4)
        subject.enable_cache()
        run_loop(subject, 4)
        with pytest.raises(TypeError):
            subject(unknown=1)


def test_a_warning_that_is_an_error_leaves_a_fresh_cache() -> None:
    subject = compiled(tight(1e-6))
    expected = run_loop(subject, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CacheIdleWarning):
            subject._reset_stateful_cache()
    assert subject._graphcache_runner.clock.streams == {}
    assert all(map(torch.equal, run_loop(subject, 4), expected))


def test_what_could_be_reused_does_not_depend_on_timesteps_alone() -> None:
    interval = Interval(2, (100, 200))
    assert could_reuse(interval, Step(1, 900.0))
    assert not could_reuse(Interval(1, (100, 200)), Step(9, 150.0))
    assert not could_reuse(Ends(4), Step(3, position=3, count=4))
    # In the middle of a schedule, its steps count.
    assert could_reuse(Ends(4), Step(3, position=6, count=8))
    with pytest.raises(PolicyError):
        Ends(1, 2).computes(Step(1))
    assert not could_reuse(Ends(1, 2), Step(3))
