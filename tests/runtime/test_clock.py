"""The step clock: streams and steps, from every source in its order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

from graphcache import PolicyError
from graphcache.policy.decisions import Step
from graphcache.runtime.clock import StepContext
from tests.runtime.loops import clock, tick


def test_calls_at_one_timestep_are_told_apart_by_their_order() -> None:
    subject = clock()
    names = [tick(subject, t).name for t in (900, 900, 800, 800, 700)]
    assert names == ["call 0", "call 1", "call 0", "call 1", "call 0"]
    assert subject.streams["call 0"].index == 3


def test_contexts_name_streams() -> None:
    subject = clock()
    for t in (900, 800):
        tick(subject, t, "cond")
        tick(subject, t, "uncond")
    assert {name: s.index for name, s in subject.streams.items()} == {
        "cond": 2,
        "uncond": 2,
    }


@pytest.mark.parametrize("context", [None, "cond"])
def test_a_rising_timestep_starts_over(context: str | None) -> None:
    subject = clock()
    for t in (900, 800, 700):
        tick(subject, t, context)
    assert tick(subject, 900, context).index == 1
    assert subject.stats.resets == 1


def test_a_second_first_step_starts_over() -> None:
    subject = clock()
    tick(subject, 900, "cond")
    assert tick(subject, 900, "cond").index == 1
    tick(subject, 800, "cond")
    # A solver of second order calls twice; that is the next step, not a new loop.
    assert tick(subject, 800, "cond").index == 3


def test_step_index_of_the_context_tells_a_new_loop() -> None:
    subject = clock()
    for index in (0, 1, 2):
        tick(subject, None, StepContext("cond", step_index=index))
    assert tick(subject, None, StepContext("cond", step_index=0)).index == 1
    assert tick(subject, None, StepContext("cond", step_index=1)).index == 2


def test_sources_in_their_order() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    subject = clock(scheduler=scheduler, callback=lambda: 5)
    said = StepContext("cond", timestep=7)
    assert tick(subject, 3, said).timestep == 7
    assert tick(subject, 3, "other").timestep == float(scheduler.timesteps[0])
    assert tick(clock(callback=lambda: 5), 3).timestep == 5
    assert tick(clock(callback=lambda: None), 3).timestep == 3


def test_new_timesteps_of_the_scheduler_are_a_new_generation() -> None:
    scheduler = CogVideoXDDIMScheduler()
    scheduler.set_timesteps(6)
    subject = clock(scheduler=scheduler)
    tick(subject, 999, "c")
    scheduler.set_timesteps(6)
    assert tick(subject, 999, "c").index == 1


def test_without_context_and_timestep_steps_cannot_be_told_apart() -> None:
    with pytest.raises(PolicyError, match="steps cannot be told apart"):
        tick(clock())


@pytest.mark.parametrize("context", [None, "cond"])
def test_a_loop_that_starts_low_and_rises_counts_up(context: str | None) -> None:
    subject = clock()
    for _ in range(3):
        steps = [tick(subject, t, context).step for t in (0, 250, 600, 990)]
        # Told at the second call, from which on 1000 is noise.
        assert [step.timestep for step in steps] == [0, 750, 400, 10]
        assert [step.index for step in steps] == [1, 2, 3, 4]
    assert subject.stats.resets == 2


def test_streams_of_a_loop_that_counts_up() -> None:
    subject = clock()
    for _ in range(2):
        for t in (10, 300, 700):
            names = [tick(subject, t).name for _ in range(2)]
            assert names == ["call 0", "call 1"]
    assert {stream.index for stream in subject.streams.values()} == {3}


@pytest.mark.parametrize("context", [None, "cond"])
def test_a_loop_that_counts_down_and_was_given_up_starts_over(
    context: str | None,
) -> None:
    """A loop that starts at 50 or above counts down, whatever comes next."""
    subject = clock()
    tick(subject, 50, context)
    assert tick(subject, 900, context).index == 1
    assert tick(subject, 800, context).index == 2
    # Ending low is not starting low.
    assert tick(subject, 10, context).index == 3
    assert tick(subject, 900, context).index == 1


def test_a_loop_that_counts_up_and_was_given_up_starts_over() -> None:
    subject = clock()
    tick(subject, 0, "cond")
    assert tick(subject, 0, "cond").index == 1
    assert tick(subject, 300, "cond").index == 2
    assert tick(subject, 0, "cond").index == 1


def test_a_callback_is_believed_whichever_way_it_counts() -> None:
    now = iter([0.0, 300.0, 900.0, 0.0])
    subject = clock(callback=lambda: next(now))
    streams = [(s.timestep, s.index) for s in (tick(subject) for _ in range(4))]
    assert streams == [(0, 1), (300, 2), (900, 3), (0, 1)]


@pytest.mark.parametrize("context", [None, "cond"])
def test_a_loop_that_starts_high_and_rises_is_warned_of(context: str | None) -> None:
    subject = clock()
    for t in (100, 200, 300):
        assert tick(subject, t, context).index == 1
    with pytest.warns(UserWarning, match="rose at three calls in a row"):
        tick(subject, 400, context)


def test_many_streams_that_all_start_over_are_not_warned_of() -> None:
    subject = clock()
    for t in (900, 800, 900, 800):
        for name in "abcd":
            tick(subject, t, name)


def test_a_step_index_that_rises_needs_no_timestep_to_fall() -> None:
    subject = clock()
    for index, t in enumerate((400, 500, 600)):
        context = StepContext("cond", step_index=index)
        assert tick(subject, t, context).index == index + 1


def test_a_step_index_that_is_said_twice_is_one_stream() -> None:
    """Except at the very first step, where it is a loop that was given up."""
    subject = clock()
    indices = [
        tick(subject, None, StepContext("cond", step_index=index)).index
        for index in (3, 3, 4, 4, 5, 5, 3)
    ]
    assert indices == [1, 1, 2, 3, 4, 5, 1]


def test_more_calls_at_one_step_than_streams_can_be_start_over() -> None:
    subject = clock()
    for _ in range(20):
        assert tick(subject, 900).index == 1
        assert len(subject.streams) <= 8
    assert tick(subject, 800).index == 1
    assert [tick(subject, t).index for t in (700, 600)] == [2, 3]


def test_frames_that_are_given_have_a_timestep_of_their_own() -> None:
    subject = clock()
    for index, t in enumerate((900.0, 800.0)):
        stream = subject.tick(torch.tensor([[0.0, t, t]]), lambda: 1.0)
        assert (stream.timestep, stream.index) == (t, index)
        stream.index += 1


def test_the_context_is_believed_before_the_scheduler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    said = StepContext(
        "cond", step_index=2, num_inference_steps=9, timestep=7, sigma=0.125
    )
    subject = clock(scheduler=scheduler)
    assert tick(subject, 3, said).step == Step(1, 7.0, 2, 9, 0.125)
    known = tick(subject, 3, "other").step
    assert known == Step(1, 1000.0, 0, 4, 1.0)


def test_timesteps_ahead_are_the_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    subject = clock(scheduler=scheduler)
    stream = tick(subject, context=StepContext("cond", step_index=0))
    assert list(subject.ahead(stream)) == scheduler.timesteps.tolist()[1:]
    assert list(clock().ahead(stream)) == []


def test_a_scheduler_without_timesteps_yet_says_nothing() -> None:
    subject = clock(scheduler=SimpleNamespace(timesteps=None))
    assert tick(subject, 500).step == Step(1, 500.0)
    assert tick(subject, 500, "cond").step == Step(1, 500.0)


def test_what_cannot_be_told_apart_is_all_first_calls_where_that_will_do() -> None:
    subject = clock()
    for _ in range(3):
        stream = subject.tick(None, lambda: 1.0, strict=False)
        assert (stream.name, stream.index) == ("call 0", 0)
        stream.index += 1


def test_the_scheduler_must_have_timesteps() -> None:
    with pytest.raises(PolicyError, match="SimpleNamespace has no timesteps"):
        clock(scheduler=SimpleNamespace())


def test_units_scale_the_argument_only() -> None:
    subject = clock()
    assert subject.tick(torch.tensor([0.5]), lambda: 1000.0).timestep == 500.0
    called = clock(callback=lambda: 0.5)
    assert called.tick(torch.tensor([0.5]), lambda: 1000.0).timestep == 0.5


def test_host_tensors_are_not_device_reads() -> None:
    subject = clock()
    tick(subject, 900)
    assert subject.stats.device_reads == 0


def test_context_takes_what_diffusers_takes() -> None:
    StepContext("c", step_index=1, num_inference_steps=2, timestep=3, sigma=0.5)
    with pytest.raises(TypeError):
        StepContext("c", unknown=1)  # type: ignore[call-arg]
