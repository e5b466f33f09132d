"""Attached schedulers: replaced, copied, not the one that is stepped."""

from __future__ import annotations

import copy
import threading
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from torch import Tensor

import graphcache
from graphcache import CacheIdleWarning, PolicyError
from graphcache.policy import Attention, Interval, Mask, Policy
from graphcache.runtime.schedule import Schedule
from graphcache.runtime.stats import Statistics
from tests.models import same, tiny, tiny_inputs
from tests.runtime.loops import clock, denoise, expected, scheduled

EVERY_SECOND = Policy("attention", Attention(), Interval(2))
STEPS = 8


def compiled(scheduler: Any, policy: Any = EVERY_SECOND) -> Any:
    return graphcache.compile(tiny(), policy, backend="eager", scheduler=scheduler)


def generate(
    module: Any,
    scheduler: Any,
    *,
    contexts: bool = False,
    placed: bool = False,
    streams: int = 1,
) -> list[Tensor]:
    """A generation, as a pipeline's; the streams have prompts of their own."""
    scheduler.set_timesteps(STEPS)
    states = [tiny_inputs(seed=seed) for seed in range(1, streams + 1)]
    outputs = []
    for index, t in enumerate(scheduler.timesteps):
        for number, inputs in enumerate(states):
            inputs["timestep"] = t.expand(2)
            place = {"step_index": index} if placed else {}
            with torch.no_grad():
                if contexts or placed:
                    with module.cache_context(f"stream {number}", **place):
                        (output,) = module(**inputs)
                else:
                    (output,) = module(**inputs)
            outputs.append(output.clone())
            if number == streams - 1:
                stepped = scheduler.step(output, t, inputs["hidden_states"])
                inputs["hidden_states"] = stepped.prev_sample
            else:
                inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
    return outputs


@cache
def never_attached() -> Any:
    return compiled(None)


def unattached() -> Any:
    """The oracle: no scheduler is attached to it."""
    module = never_attached()
    module._reset_stateful_cache()
    module.cache_stats.clear()
    return module


def computed(module: Any) -> list[bool]:
    return [r.computed["attention"] for r in module.cache_stats.steps]


def test_a_function_is_asked_and_followed() -> None:
    """`compile(scheduler=lambda: pipe.scheduler)`: whichever the pipeline has."""
    current: list[Any] = [None]
    subject = clock(scheduler=lambda: current[0])
    assert denoise([subject], scheduled(DDIMScheduler, 3))["call 0"][0].position is None
    for kind, steps in (
        (FlowMatchEulerDiscreteScheduler, 6),
        (DDIMScheduler, 4),
        (FlowMatchHeunDiscreteScheduler, 5),
    ):
        current[0] = scheduled(kind, steps)
        assert denoise([subject], current[0]) == {"call 0": expected(current[0])}


def test_a_function_that_gives_no_scheduler_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"int has no timesteps: .* or a function"):
        Schedule(lambda: 3, Statistics())


@pytest.mark.parametrize("contexts", [True, False])
def test_the_pipelines_scheduler_is_replaced(contexts: bool) -> None:
    class Pipe:
        scheduler: Any = FlowMatchEulerDiscreteScheduler()

    pipe = Pipe()
    mask = Policy("attention", Attention(), Mask((1, 0) * 4, steps=STEPS))
    module = compiled(lambda: pipe.scheduler, mask)
    for scheduler in (pipe.scheduler, FlowMatchEulerDiscreteScheduler(shift=3.0)):
        pipe.scheduler = scheduler
        module.cache_stats.clear()
        generate(module, pipe.scheduler, contexts=contexts)
        assert computed(module) == [True, False] * 4


@pytest.mark.parametrize(
    ("how", "streams", "set_before"),
    [
        ("order", 1, True),
        ("order", 2, False),
        ("contexts", 1, False),
        ("contexts", 2, True),
        ("placed", 1, True),
        ("placed", 2, False),
    ],
)
def test_one_that_nobody_steps_is_found_out(
    how: str, streams: int, set_before: bool
) -> None:
    """The pipeline has a copy, or another one."""
    attached = FlowMatchEulerDiscreteScheduler()
    if set_before:
        attached.set_timesteps(STEPS)
        attached.set_begin_index(0)
    module = compiled(attached)
    told = {"contexts": how == "contexts", "placed": how == "placed"}
    stepped = copy.deepcopy(attached)
    generate(module, stepped, streams=streams, **told)
    module._reset_stateful_cache()
    module.cache_stats.clear()
    second = generate(module, stepped, streams=streams, **told)
    # From the second generation on, all is as without it.
    bare = unattached()
    assert same(second, generate(bare, stepped, streams=streams, **told))
    assert computed(module) == computed(bare)
    assert not all(computed(module))


def test_the_first_generation_finds_it_out_as_well() -> None:
    module = compiled(FlowMatchEulerDiscreteScheduler())
    generate(module, FlowMatchEulerDiscreteScheduler())
    assert computed(module).count(False) >= 3


def test_one_that_is_stepped_again_is_believed_again() -> None:
    attached = FlowMatchEulerDiscreteScheduler()
    mask = Policy("attention", Attention(), Mask((1, 0, 0, 0) * 2, steps=STEPS))
    module = compiled(attached, mask)
    generate(module, FlowMatchEulerDiscreteScheduler())
    module._reset_stateful_cache()
    module.cache_stats.clear()
    generate(module, attached)
    assert computed(module) == [True, False, False, False] * 2


def test_two_pipelines_of_one_module_in_two_threads() -> None:
    """The scheduler of one is attached; the other has one of its own."""
    attached, other = (
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    module = compiled(attached)
    found: dict[int, list[Tensor]] = {}

    def run(number: int, scheduler: Any) -> None:
        found[number] = generate(module, scheduler)
        found[number] = generate(module, scheduler)

    threads = [
        threading.Thread(target=run, args=pair) for pair in enumerate((attached, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, shift in enumerate((1.0, 3.0)):
        alone = generate(unattached(), FlowMatchEulerDiscreteScheduler(shift=shift))
        assert same(found[number], alone)


def test_a_scheduler_that_never_moves_and_no_timestep_is_warned_of() -> None:
    attached = scheduled(FlowMatchEulerDiscreteScheduler, STEPS)
    attached.set_begin_index(0)
    module = compiled(attached)
    inputs = tiny_inputs()
    runner = module._graphcache_runner
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            for _ in range(STEPS):
                with module.cache_context("cond"):
                    module(**inputs)
    assert [w.category for w in caught] == [CacheIdleWarning]
    assert "every call looked like the first of a new generation" in str(
        caught[0].message
    )
    assert runner.stats.resets
