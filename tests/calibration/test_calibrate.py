"""calibrate: the drop-in, the generations that are told apart, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor, nn

import graphcache
from graphcache import (
    BackendError,
    CaptureError,
    MagCacheCalibration,
    PolicyError,
    calibrate,
    never_reuse,
)
from tests.models import run_loop, same, tiny, tiny_inputs
from tests.test_pipeline import generate, pipeline


def loops(*steps: int, seed: int = 1) -> Callable[[nn.Module], None]:
    """Generations with these numbers of steps."""

    def run(module: nn.Module) -> None:
        for count in steps:
            run_loop(module, count, seed=seed)

    return run


def call(module: nn.Module, timestep: float, seed: int = 1) -> Tensor:
    (output,) = module(**tiny_inputs(timestep, seed=seed))
    found: Tensor = output
    return found


def calls(
    module: nn.Module, times: Sequence[float], place: Callable[[int], dict[str, Any]]
) -> None:
    """One call per timestep, in a context that tells its place."""
    for index, timestep in enumerate(times):
        with module.cache_context("cond", **place(index)):
            call(module, timestep, seed=index)


def test_what_runs_is_the_module_itself() -> None:
    seen: list[list[Tensor]] = []
    subject = tiny()
    kinds: list[type] = []

    def run(module: nn.Module) -> None:
        kinds.append(type(module))
        assert isinstance(module, type(subject))
        seen.append(run_loop(module, 5))

    report = calibrate(subject, "magcache", run)
    assert len(report.ratios) == 5
    assert same(seen[0], run_loop(tiny(), 5))
    assert kinds[0] is not type(subject)


def test_nothing_is_left_changed() -> None:
    module = tiny()
    before, weights = dict(module.__dict__), copy.deepcopy(module.state_dict())
    dropped: list[nn.Module] = []
    calibrate(module, "magcache", lambda m: (dropped.append(m), run_loop(m, 4)))
    assert module.__dict__ == before
    assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())
    expected = run_loop(tiny(), 3)
    assert same(run_loop(module, 3), expected)
    # What the caller left in the pipeline is the module as well, and holds nothing.
    assert same(run_loop(dropped[0], 3), expected)
    runner: Any = dropped[0]._graphcache_runner
    assert len(runner.recorder.trajectories) == 1
    assert not runner.clock.streams
    assert not runner.loops
    with pytest.raises(PolicyError, match="caches nothing"):
        dropped[0].enable_cache(never_reuse())
    assert type(copy.deepcopy(dropped[0])) is type(module)


def test_an_exception_leaves_nothing_changed_either() -> None:
    module = tiny()
    module.forward = module.forward  # as a removed hook leaves it
    before = dict(module.__dict__)

    def run(subject: nn.Module) -> None:
        run_loop(subject, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(module, "magcache", run)
    assert module.__dict__ == before


def test_every_trajectory_counts_the_same() -> None:
    """Two runs of two streams in turn, against the streams alone."""
    module = tiny()
    alone = [
        calibrate(module, "magcache", loops(5, seed=seed)).ratios for seed in (1, 2)
    ]
    seeds = iter([(1, 2), (2, 2)])

    def run(subject: nn.Module) -> None:
        latents = [tiny_inputs(seed=seed) for seed in next(seeds)]
        for timestep in (999.0 - 999.0 * step / 4 for step in range(5)):
            for inputs, name in zip(latents, ("cond", "uncond"), strict=True):
                inputs["timestep"] = torch.full((2,), timestep)
                with subject.cache_context(name):
                    (output,) = subject(**inputs)
                inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output

    report = calibrate(module, "magcache", run, runs=2)
    assert report.trajectories == 4
    assert list(report.streams) == ["cond", "uncond"]
    means = [(a + 3 * b) / 4 for a, b in zip(*alone, strict=True)]
    assert report.ratios == pytest.approx(means, rel=1e-12)
    cond = [(a + b) / 2 for a, b in zip(*alone, strict=True)]
    assert report.streams == {"cond": pytest.approx(cond), "uncond": alone[1]}


def test_streams_without_contexts_are_told_by_their_order() -> None:
    def run(module: nn.Module) -> None:
        for timestep in (900.0, 600.0, 300.0):
            for seed in (1, 2):
                call(module, timestep, seed)

    report = calibrate(tiny(), "magcache", run)
    assert {name: len(row) for name, row in report.streams.items()} == {
        "call 0": 3,
        "call 1": 3,
    }


def test_shapes_may_differ_between_generations() -> None:
    def run(module: nn.Module) -> None:
        for tokens in (3, 5):
            run_loop(module, 4, tokens=tokens)

    report = calibrate(tiny(), "magcache", run)
    assert report.trajectories == 2
    three = calibrate(tiny(), "magcache", loops(4))
    assert report.ratios != three.ratios
    assert len(report.ratios) == 4


def test_a_generation_that_begins_in_the_middle_keeps_its_place() -> None:
    scheduler = CogVideoXDDIMScheduler()
    scheduler.set_timesteps(8)

    def run(module: nn.Module) -> None:
        for index, timestep in enumerate(scheduler.timesteps[3:]):
            call(module, float(timestep), seed=index)

    placed = calibrate(tiny(), "magcache", run, scheduler=scheduler).ratios
    counted = calibrate(tiny(), "magcache", run).ratios
    assert placed == [1.0] * 3 + counted
    errors = calibrate(tiny(), "smoothcache", run, scheduler=scheduler)
    rows = errors.errors["attn1"]
    assert [len(row) for row in rows] == [0, 0, 0, 3, 3, 2, 1, 0]
    schedule = errors.schedule(10.0)
    assert schedule.computed["attn1"] == (1, 1, 1, 1, 0, 0, 0, 1)


def test_a_context_tells_the_place_and_the_number_of_steps() -> None:
    """The first of two models that share a loop sees only its beginning."""

    def place(index: int) -> dict[str, Any]:
        return {"step_index": index, "num_inference_steps": 6}

    report = calibrate(
        tiny(), "magcache", lambda m: calls(m, (900, 700, 500, 300), place)
    )
    assert len(report.ratios) == 6
    assert report.ratios[4:] == [1.0, 1.0]
    assert 1.0 not in report.ratios[1:4]


def test_steps_that_are_left_out_are_refused() -> None:
    def place(index: int) -> dict[str, Any]:
        return {"step_index": 2 * index, "num_inference_steps": 6}

    with pytest.raises(PolicyError, match="is at step 2 of the schedule and was expe"):
        calibrate(tiny(), "magcache", lambda m: calls(m, (900, 700), place))


def test_generations_of_different_lengths_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"different lengths.* 5 steps .*, 7 steps"):
        calibrate(tiny(), "magcache", loops(5, 7))


def test_a_run_that_never_calls_is_refused() -> None:
    with pytest.raises(PolicyError, match="never called the module"):
        calibrate(tiny(), "magcache", lambda module: None)


@pytest.mark.parametrize("method", ["pab", "", None, 3])
def test_unknown_methods_are_refused(method: Any) -> None:
    with pytest.raises(PolicyError, match="know magcache, teacache, smoothcache"):
        calibrate(tiny(), method, loops(2))


@pytest.mark.parametrize("method", ["magcache", "teacache", "smoothcache"])
def test_a_model_without_blocks_is_refused(method: Any) -> None:
    with pytest.raises(PolicyError, match=r"A block is a numbered module call"):
        calibrate(tiny(depth=0), method, loops(2))


def test_numbers_that_are_not_finite_are_refused() -> None:
    module = tiny()
    nn.init.constant_(module.blocks[0].ff.weight, float("nan"))
    with pytest.raises(PolicyError, match="ratio measured at step 1 of stream 'call 0"):
        calibrate(module, "magcache", loops(3))


def test_what_cannot_be_compiled_cannot_be_calibrated() -> None:
    with pytest.raises(CaptureError, match="training mode"):
        calibrate(tiny().train(), "magcache", loops(2))
    compiled = graphcache.compile(tiny(), never_reuse(), backend="eager")
    with pytest.raises(CaptureError, match="compiled by graphcache already"):
        calibrate(compiled, "magcache", loops(2))
    with pytest.raises(BackendError, match="unknown backend"):
        calibrate(tiny(), "magcache", loops(2), backend="gpu")
    with pytest.raises(PolicyError, match="number of runs must be a positive integer"):
        calibrate(tiny(), "magcache", loops(2), runs=0)


@pytest.mark.parametrize("method", ["magcache", "teacache", "smoothcache"])
def test_backends_agree(method: Any) -> None:
    reports = [
        calibrate(tiny(), method, loops(7), backend=backend)
        for backend in ("eager", "reference")
    ]
    assert reports[0] == reports[1]


def test_gradients_are_off() -> None:
    def run(module: nn.Module) -> None:
        assert not torch.is_grad_enabled()
        for timestep in (900.0, 500.0):
            call(module, timestep)

    assert len(calibrate(tiny(), MagCacheCalibration(), run).ratios) == 2


def test_in_a_pipeline() -> None:
    pipe: Any = pipeline()
    transformer = pipe.transformer
    clips: list[Tensor] = []

    def run(module: nn.Module) -> None:
        pipe.transformer = module
        clips.extend(generate(pipe, steps=4) for _ in range(2))

    report = calibrate(transformer, "magcache", run)
    assert report.trajectories == 2
    assert list(report.streams) == ["cond_uncond"]
    pipe.transformer = transformer
    assert torch.equal(clips[0], clips[1])
    assert torch.equal(clips[0], generate(pipe, steps=4))
