"""Whether a loop went on or began again: contexts that contradict, and frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import graphcache
from graphcache.runtime.clock import Clock, StepContext
from graphcache.runtime.prompts import Given
from graphcache.runtime.times import Reading, read
from tests.models import same, tiny, tiny_inputs
from tests.runtime.loops import clock, tick
from tests.runtime.policies import DYNAMIC, STATIC


def at(subject: Clock, index: int, timestep: float | None, **more: Any) -> int:
    """One call at a step that the context says; its index, from 1."""
    said = StepContext("cond", step_index=index, **more)
    return tick(subject, timestep, said).index


def test_another_number_of_steps_is_another_loop() -> None:
    subject = clock()
    assert [at(subject, i, 900 - i, num_inference_steps=28) for i in range(2)] == [1, 2]
    assert at(subject, 2, 600, num_inference_steps=50) == 1
    assert at(subject, 3, 500, num_inference_steps=50) == 2


@pytest.mark.parametrize("timestep", [500, 950])
def test_another_timestep_at_the_same_index_is_another_loop(timestep: float) -> None:
    subject = clock()
    assert [at(subject, i, 900 - i) for i in range(3)] == [1, 2, 3]
    assert at(subject, 2, timestep) == 1
    assert at(subject, 3, timestep - 1) == 2


def test_a_timestep_that_goes_against_the_loop_is_another_loop() -> None:
    subject = clock()
    assert [at(subject, i, 500 - 10 * i) for i in range(2)] == [1, 2]
    assert at(subject, 2, 800) == 1
    # One that counts up is told at its second step.
    up = clock()
    assert [at(up, i, 500 + 10 * i) for i in range(3)] == [1, 2, 3]
    assert at(up, 3, 100) == 1


def test_a_second_stage_at_the_same_timestep_goes_on() -> None:
    subject = clock()
    calls = [(0, 900), (1, 800), (1, 800), (2, 700), (2, 700)]
    assert [at(subject, *call) for call in calls] == [1, 2, 3, 4, 5]


def test_another_prompt_at_the_very_next_index_reuses_nothing() -> None:
    """An image-to-image loop whose index and timestep fit the one that was given up."""
    subject = clock()
    prompts = [torch.randn(2), torch.randn(2)]
    for index, prompt in enumerate([prompts[0]] * 2 + [prompts[1]] * 2):
        subject.context = StepContext("cond", step_index=index)
        given = Given(prompt, torch.randn(2), ())
        stream = subject.tick(torch.tensor([900.0 - index]), lambda: 1.0, given=given)
        stream.adopt("loop")
        assert stream.begun == (0 if index < 2 else 2)
        stream.index += 1


@pytest.mark.parametrize("policy", [STATIC, DYNAMIC])
@pytest.mark.parametrize("aborted", [1, 2, 3])
def test_image_to_image_after_a_loop_that_was_given_up(
    policy: Any, aborted: int
) -> None:
    """It begins at the index at which the other one stopped, or goes on from it."""

    def steps(module: Any, first: int, last: int, count: int, seed: int) -> Any:
        inputs, outputs = tiny_inputs(seed=seed), []
        for index in range(first, last):
            inputs["timestep"] = torch.full((2,), 1000.0 * (1 - index / count))
            place = {"step_index": index, "num_inference_steps": count}
            with torch.no_grad(), module.cache_context("cond", **place):
                (output,) = module(**inputs)
            inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
            outputs.append(output.clone())
        return outputs

    module, fresh = (
        graphcache.compile(tiny(), policy, backend="eager") for _ in range(2)
    )
    steps(module, 0, aborted, 4, seed=1)
    assert same(steps(module, 2, 8, 8, seed=2), steps(fresh, 2, 8, 8, seed=2))


def staggered(steps: int, frames: int, lag: int) -> list[torch.Tensor]:
    """Diffusion forcing: each frame begins some steps after the one before."""
    times = torch.linspace(1000, 1, steps)
    rows = []
    for step in range(steps + lag * (frames - 1)):
        places = [min(max(step - lag * f, 0), steps - 1) for f in range(frames)]
        rows.append(torch.stack([times[place] for place in places])[None])
    return rows


@pytest.mark.parametrize("context", [None, "cond"])
def test_frames_that_take_turns_are_one_loop(context: str | None) -> None:
    subject = clock()
    rows = staggered(8, 5, 5)
    assert len(rows) == 28
    for _ in range(2):
        for index, row in enumerate(rows):
            subject.context = None if context is None else StepContext(context)
            stream = subject.tick(row, lambda: 1.0)
            assert stream.index == index
            assert stream.timestep == float(row.max())
            stream.index += 1
    assert subject.stats.resets == 1


def test_a_window_of_frames_that_grows_is_one_loop() -> None:
    subject = clock()
    rows = staggered(6, 4, 2)
    for index, row in enumerate(rows):
        begun = min(4, index // 2 + 1)
        stream = subject.tick(row[:, :begun], lambda: 1.0)
        assert stream.index == index
        stream.index += 1


@pytest.mark.parametrize("tokens", [6, 4096])
@pytest.mark.parametrize("context", [None, "cond"])
def test_given_frames_without_noise(context: str | None, tokens: int) -> None:
    """Wan 2.2's image to video: zeros for the first frame, a timestep a token."""
    subject = clock()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(28)
    mask = (torch.arange(tokens) >= tokens // 3).float()[None]
    for index, t in enumerate(scheduler.timesteps):
        subject.context = None if context is None else StepContext(context)
        stream = subject.tick(mask * t, lambda: 1.0)
        assert (stream.index, stream.timestep) == (index, float(t))
        stream.index += 1
    assert subject.stats.resets == 0


def test_timesteps_are_read_once_each() -> None:
    assert read(7) == Reading(7.0, 7.0, 7.0)
    assert read(torch.tensor([7.0])) == Reading(7.0, 7.0, 7.0)
    assert read(torch.tensor(7.0).expand(3)) == Reading(7.0, 7.0, 7.0)
    assert read(torch.tensor([[0.0, 4.0]])) == Reading(4.0, 2.0, 4.0, 2)
    many = torch.cat([torch.zeros(100), torch.full((100,), 3.0)]).expand(2, 200)
    assert read(many) == Reading(3.0, 1.5, 3.0, 200)
    scaled = read(torch.tensor([[0.0, 0.5]])).scaled(1000)
    assert scaled == Reading(500.0, 250.0, 500.0, 2)
    assert read(torch.zeros(2, 3)) == Reading(0.0, 0.0, 0.0, 3)
