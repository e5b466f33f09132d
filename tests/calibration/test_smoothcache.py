"""Errors of layers and the schedules made of them, against plain Python."""

from __future__ import annotations

import pytest
from torch import nn

import graphcache
from graphcache import (
    PolicyError,
    SmoothCacheCalibration,
    SmoothCacheErrors,
    SmoothCacheSchedule,
    calibrate,
    smoothcache,
)
from tests.models import run_loop, tiny
from tests.references import layer_errors, smooth_schedule
from tests.zoo import ZOO, denoise, make

STEPS = 7
ALPHAS = (0.0, 0.2, 0.5, 0.8, 1.2, 100.0)


def measured(name: str, lags: int = 3) -> SmoothCacheErrors:
    zoo = ZOO[name]
    method = SmoothCacheCalibration(lags)
    return calibrate(make(zoo), method, lambda module: denoise(module, zoo, STEPS))


@pytest.mark.parametrize(("name", "lags"), [("pixart", 3), ("cogvideox", 2)])
def test_equals_the_reference(name: str, lags: int) -> None:
    module = make(ZOO[name])
    expected = layer_errors(module, lambda: denoise(module, ZOO[name], STEPS), lags)
    report = measured(name, lags)
    assert report.errors == expected
    assert report.trajectories == 1
    for alpha in ALPHAS:
        schedule = smooth_schedule(expected, alpha)
        rows = report.schedule(alpha).computed
        assert {kind: list(map(int, row)) for kind, row in rows.items()} == schedule


def test_the_schedule_names_its_model_and_can_be_kept() -> None:
    module = tiny(depth=3, cross=True)
    report = calibrate(module, "smoothcache", lambda m: run_loop(m, STEPS))
    # One linear and a nonlinearity are no feed-forward.
    assert report.layers == {"attn1": 3, "attn2": 3}
    schedule = report.schedule(0.2)
    assert schedule.model == "TinyTransformer"
    assert schedule.layers == report.layers
    kept = SmoothCacheSchedule.from_json(schedule.to_json())
    assert kept == schedule
    assert 0 in [value for row in kept.computed.values() for value in row]
    subject = graphcache.compile(module, smoothcache(kept), backend="eager")
    run_loop(subject, STEPS)
    for kind, row in kept.computed.items():
        steps = subject.cache_stats.steps
        assert [step.computed[kind] for step in steps] == list(map(bool, row))


def test_the_mean_is_that_of_all_trajectories() -> None:
    module = tiny()
    alone = [
        calibrate(module, "smoothcache", lambda m, s=seed: run_loop(m, 4, seed=s))
        for seed in (1, 2)
    ]
    both = calibrate(
        module, "smoothcache", lambda m: [run_loop(m, 4, seed=s) for s in (1, 2)]
    )
    assert both.trajectories == 2
    for kind, table in both.errors.items():
        for step, row in enumerate(table):
            pairs = zip(*(report.errors[kind][step] for report in alone), strict=True)
            assert row == pytest.approx([(a + b) / 2 for a, b in pairs], rel=1e-12)


def test_a_layer_that_gives_zeros_has_no_error() -> None:
    module = tiny()
    for block in module.blocks:
        nn.init.zeros_(block.attn1.to_out.weight)
        nn.init.zeros_(block.attn1.to_out.bias)
    report = calibrate(module, "smoothcache", lambda m: run_loop(m, 3))
    assert report.errors["attn1"] == [[0.0, 0.0], [0.0], []]


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), "much"])
def test_bad_bounds_are_refused(alpha: float) -> None:
    report = SmoothCacheErrors({"attn": [[0.1], []]}, "Model", {"attn": 1}, 1)
    with pytest.raises(PolicyError, match="must be a number"):
        report.schedule(alpha)


def test_bad_lags_are_refused() -> None:
    with pytest.raises(PolicyError, match="number of lags must be a positive integer"):
        SmoothCacheCalibration(lags=0)
