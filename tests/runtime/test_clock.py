"""The step clock: streams and steps, from every source in its order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

from graphcache import PolicyError
from graphcache.runtime.clock import Clock, StepContext
from graphcache.runtime.stats import Statistics
from graphcache.runtime.streams import Stream


def clock(**kwargs: Any) -> Clock:
    return Clock(Statistics(), **kwargs)


def tick(clock: Clock, timestep: Any = None, context: Any = None) -> Stream:
    """One call, counted as the runner does."""
    clock.context = StepContext(context) if isinstance(context, str) else context
    argument = None if timestep is None else torch.tensor([float(timestep)])
    stream = clock.tick(argument, lambda: 1.0)
    stream.index += 1
    return stream


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


def test_a_scheduler_that_counts_is_followed() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    subject = clock(scheduler=scheduler)
    seen = []
    for t in scheduler.timesteps:
        seen.append(tick(subject).timestep)
        scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert seen == scheduler.timesteps.tolist()


def test_a_scheduler_that_does_not_count_is_counted_for() -> None:
    scheduler = CogVideoXDDIMScheduler()
    scheduler.set_timesteps(6)
    subject = clock(scheduler=scheduler)
    # Starts in the middle, as image-to-image does.
    expected = scheduler.timesteps[2:].tolist()
    assert [tick(subject, t, "c").timestep for t in expected] == expected


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


def test_a_loop_that_counts_up_is_warned_of() -> None:
    subject = clock()
    for t in (0, 10, 20):
        tick(subject, t)
    with pytest.warns(UserWarning, match="rose at three calls in a row"):
        tick(subject, 30)


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
