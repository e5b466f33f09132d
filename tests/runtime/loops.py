"""Denoising loops without a model: what a clock is told, and what it has to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graphcache.policy.decisions import Step
from graphcache.runtime.clock import Clock, StepContext
from graphcache.runtime.stats import Statistics
from graphcache.runtime.streams import Stream

Steps = dict[str, list[Step]]


def clock(**kwargs: Any) -> Clock:
    """A clock with statistics of its own."""
    return Clock(Statistics(), **kwargs)


def call(subject: Clock, argument: Any, context: StepContext | None = None) -> Stream:
    """One call of a module, counted as the runner does."""
    subject.context = context
    stream = subject.tick(argument, lambda: 1.0)
    stream.index += 1
    return stream


def tick(subject: Clock, timestep: Any = None, context: Any = None) -> Stream:
    """One call with a number for a timestep, and a context or its name."""
    argument = None if timestep is None else torch.tensor([float(timestep)])
    said = StepContext(context) if isinstance(context, str) else context
    return call(subject, argument, said)


def scheduled(kind: Callable[..., Any], steps: int, **kwargs: Any) -> Any:
    """A scheduler with its timesteps set."""
    scheduler = kind(**kwargs)
    scheduler.set_timesteps(steps)
    return scheduler


def position_of(scheduler: Any, index: int) -> dict[str, Any]:
    """What Wan's pipeline says in its contexts."""
    return {
        "step_index": index,
        "sigma": float(scheduler.sigmas[index]),
        "num_inference_steps": len(scheduler.timesteps),
    }


def denoise(
    subjects: Sequence[Clock],
    scheduler: Any,
    *,
    begin: int = 0,
    calls: int | None = None,
    streams: Sequence[str | None] = (None,),
    placed: bool = False,
    argument: Callable[[Tensor], Tensor | None] = lambda t: t.expand(2),
) -> Steps:
    """A loop over a scheduler's timesteps, as a pipeline's; what was said of each call.

    Args:
        subjects: Clocks of the modules that share the loop, each an equal part of it.
        scheduler: Steps after the streams' calls, at every timestep.
        begin: Where image-to-image starts.
        calls: After how many calls the loop is given up, and nobody says so.
        streams: Names of the contexts that are called in turn; None for no context.
        placed: Whether the contexts say the place in the loop.
        argument: The timestep argument, from the scheduler's timestep.
    """
    seen: Steps = {}
    timesteps = scheduler.timesteps[begin:]
    part = -(-len(timesteps) // len(subjects))
    made = 0
    for index, t in enumerate(timesteps):
        subject = subjects[index // part]
        place = position_of(scheduler, index) if placed else {}
        for name in streams:
            if made == calls:
                return seen
            context = None if name is None else StepContext(name, **place)
            stream = call(subject, argument(t), context)
            step = replace(stream.step, index=stream.index - 1)
            seen.setdefault(stream.name, []).append(step)
            made += 1
        scheduler.step(torch.zeros(1, 1, 1, 1), t, torch.zeros(1, 1, 1, 1))
    return seen


def expected(scheduler: Any, *, begin: int = 0, known: bool = True) -> list[Step]:
    """What has to be said of one stream; where it is, only if that can be known."""
    timesteps = [float(t) for t in scheduler.timesteps]
    steps = []
    for index, timestep in enumerate(timesteps[begin:]):
        position = begin + index
        step = Step(index, timestep, position, len(timesteps))
        if hasattr(scheduler, "sigmas"):
            step = replace(step, sigma=float(scheduler.sigmas[position]))
        steps.append(step if known else Step(index, timestep))
    return steps
