"""The clock of a pipeline, and a scheduler that a function returns."""

from __future__ import annotations

import copy
import gc
import pickle
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from graphcache import PolicyError
from graphcache.runtime.following import PipelineClock
from graphcache.runtime.schedule import Schedule
from graphcache.runtime.stats import Statistics
from tests.runtime.loops import clock, denoise, expected, scheduled

Euler = diffusers.FlowMatchEulerDiscreteScheduler


class Pipe:
    """What is asked of a pipeline."""

    def __init__(self, scheduler: Any, current_timestep: Any = None) -> None:
        self.scheduler = scheduler
        self.current_timestep = current_timestep


def test_the_scheduler_of_now() -> None:
    first, second = Euler(), Euler()
    pipe = Pipe(first)
    subject = PipelineClock(pipe)
    assert subject() is first
    pipe.scheduler = second
    assert subject() is second
    # Neither a gap nor the end of the pipeline loses it.
    pipe.scheduler = None
    assert subject() is second
    del pipe
    gc.collect()
    assert subject() is second
    assert subject.pipe is None


@pytest.mark.parametrize("scheduler", [None, SimpleNamespace(), 3])
def test_no_scheduler(scheduler: Any) -> None:
    pipe = Pipe(scheduler)
    assert PipelineClock(pipe)() is None
    assert PipelineClock()() is None
    assert PipelineClock(pipe, "prior_scheduler")() is None


def test_a_timestep_is_one_of_the_loop_of_now() -> None:
    scheduler = scheduled(Euler, 4)
    pipe = Pipe(scheduler)
    subject = PipelineClock(pipe)
    assert subject.timestep() is None
    for timestep in scheduler.timesteps:
        pipe.current_timestep = timestep
        assert subject.timestep() is timestep
    # Interrupted, and another pipeline goes on with the scheduler.
    scheduler.set_timesteps(4)
    assert subject.timestep() is None
    pipe.current_timestep = scheduler.timesteps[2:][0]
    assert float(subject.timestep()) == float(scheduler.timesteps[2])
    pipe.current_timestep = torch.tensor(500.0)
    assert subject.timestep() is None
    pipe.current_timestep = 7
    assert subject.timestep() == 7
    assert PipelineClock().timestep() is None


def test_a_copy_belongs_to_the_copy_of_the_pipeline_or_to_none() -> None:
    pipe: Any = Pipe(Euler())
    pipe.clock = PipelineClock(pipe, "scheduler")
    twin = copy.deepcopy(pipe)
    assert twin.clock.pipe is twin
    assert copy.deepcopy(pipe.clock).pipe is None
    for alone in (copy.deepcopy(pipe.clock), pickle.loads(pickle.dumps(pipe.clock))):
        assert alone() is None
        assert alone.scheduler == "scheduler"


def test_a_schedule_that_is_followed() -> None:
    pipe = Pipe(scheduled(Euler, 6))
    subject = clock(scheduler=PipelineClock(pipe))
    for kind, steps in ((Euler, 6), (diffusers.DDIMScheduler, 4), (Euler, 3)):
        pipe.scheduler = scheduled(kind, steps)
        found = denoise([subject], pipe.scheduler, streams=("cond", "uncond"))
        want = expected(pipe.scheduler)
        assert found == {"cond": want, "uncond": want}


def test_a_schedule_without_a_scheduler_is_none() -> None:
    for subject in (clock(scheduler=PipelineClock()), clock()):
        scheduler = scheduled(Euler, 5)
        found = denoise([subject], scheduler)
        assert found == {"call 0": expected(scheduler, known=False)}


@pytest.mark.parametrize("given", [object(), lambda: 3, 3])
def test_what_is_no_scheduler(given: Any) -> None:
    with pytest.raises(PolicyError, match="has no timesteps: scheduler= takes"):
        Schedule(given, Statistics())
