"""A schedule for another number of steps is refused before anything runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

import graphcache
from graphcache import PolicyError
from graphcache.policy import Attention, Mask, Policy
from tests.models import same, tiny, tiny_inputs

MASK = (1, 0, 0, 0, 1, 0)
POLICY = Policy("mask", Attention(), Mask(MASK, steps=6))


def compiled(scheduler: Any = None) -> Any:
    return graphcache.compile(tiny(), POLICY, backend="eager", scheduler=scheduler)


def context_of(
    module: Any, names: bool, scheduler: Any, index: int
) -> AbstractContextManager[None]:
    if not names or not hasattr(module, "cache_context"):
        return nullcontext()
    place = {
        "step_index": index,
        "sigma": float(scheduler.sigmas[index]),
        "num_inference_steps": len(scheduler.timesteps),
    }
    context: AbstractContextManager[None] = module.cache_context("cond", **place)
    return context


def generate(
    modules: list[Any], scheduler: Any, steps: int, *, contexts: bool, seed: int = 1
) -> list[Tensor]:
    """A loop that the modules share, each an equal part of it."""
    scheduler.set_timesteps(steps)
    inputs = tiny_inputs(seed=seed)
    outputs = []
    with torch.no_grad():
        for index, t in enumerate(scheduler.timesteps):
            module = modules[index * len(modules) // steps]
            inputs["timestep"] = t.expand(2)
            with context_of(module, contexts, scheduler, index):
                (output,) = module(**inputs)
            outputs.append(output.clone())
            inputs["hidden_states"] = scheduler.step(
                output, t, inputs["hidden_states"], return_dict=False
            )[0]
    return outputs


@pytest.fixture(params=["contexts", "scheduler"])
def source(request: pytest.FixtureRequest) -> tuple[Any, Any, bool]:
    """A compiled module, the loop's scheduler, and whether contexts tell the steps."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    if request.param == "contexts":
        return compiled(), scheduler, True
    return compiled(scheduler), scheduler, False


@pytest.mark.parametrize("steps", [5, 7, 50])
def test_another_number_of_steps_is_refused_before_anything_runs(
    source: tuple[Any, Any, bool], steps: int
) -> None:
    subject, scheduler, contexts = source
    good = generate([subject], scheduler, 6, contexts=contexts)
    ran = len(subject.cache_stats.steps)
    with pytest.raises(PolicyError, match=f"for 6 steps and the loop has {steps}"):
        generate([subject], scheduler, steps, contexts=contexts, seed=2)
    # Nothing ran, nothing is held, and the next generation knows of nothing.
    assert len(subject.cache_stats.steps) == ran
    assert subject._graphcache_runner.clock.streams == {}
    assert same(generate([subject], scheduler, 6, contexts=contexts), good)
    assert [record.computed["mask"] for record in subject.cache_stats.steps] == [
        *map(bool, MASK * 2)
    ]


def test_refused_at_the_first_call_of_all(source: tuple[Any, Any, bool]) -> None:
    subject, scheduler, contexts = source
    with pytest.raises(PolicyError, match="for 6 steps and the loop has 4"):
        generate([subject], scheduler, 4, contexts=contexts)
    assert list(subject.cache_stats.steps) == []
    generate([subject], scheduler, 6, contexts=contexts)
    assert subject.cache_stats.captures == 1


def test_a_loop_of_unknown_length_is_taken() -> None:
    subject = compiled()
    generate([subject], FlowMatchEulerDiscreteScheduler(), 4, contexts=False)
    computed = [record.computed["mask"] for record in subject.cache_stats.steps]
    assert computed == [*map(bool, MASK[:4])]


@pytest.mark.parametrize("contexts", [True, False])
def test_two_transformers_of_one_loop(contexts: bool) -> None:
    """Wan 2.2: the schedule is that of the whole loop, and each obeys its part of it.

    The second computes at its first step, whatever the mask says.
    """
    scheduler = FlowMatchEulerDiscreteScheduler()
    attached = None if contexts else scheduler
    subjects = [compiled(attached), compiled(attached)]
    for _ in range(2):
        for subject in subjects:
            subject.cache_stats.clear()
        generate(subjects, scheduler, 6, contexts=contexts)
        computed = [
            [record.computed["mask"] for record in subject.cache_stats.steps]
            for subject in subjects
        ]
        assert computed == [[True, False, False], [True, True, False]]
    with pytest.raises(PolicyError, match="for 6 steps and the loop has 8"):
        generate(subjects, scheduler, 8, contexts=contexts)
