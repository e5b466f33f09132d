"""Wan 2.2: diffusers' own pipeline, unmodified, with two compiled transformers."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor, nn

import graphcache
from graphcache import PolicyError, magcache, never_reuse
from graphcache.policy import Mask, Policy, Step
from graphcache.policy.regions import Attention
from tests.runtime.loops import expected
from tests.runtime.policies import DYNAMIC, STATIC
from tests.zoo import ZOO, make

WAN = ZOO["wan"]
STEPS = 6
SCHEDULERS = {
    "euler": partial(FlowMatchEulerDiscreteScheduler, shift=3.0),
    "unipc": partial(
        UniPCMultistepScheduler,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
    ),
    "heun": partial(FlowMatchHeunDiscreteScheduler, shift=3.0),
}


def pipeline(scheduler: Any, **config: Any) -> Any:
    """A pipeline whose transformers differ, each for a part of the loop."""
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=scheduler,
        transformer=make(WAN, seed=0),
        transformer_2=make(WAN, seed=1),
        boundary_ratio=0.8,
        **config,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compiled(pipe: Any, policy: object, *, attached: bool = False) -> Any:
    """The same pipeline with its transformers compiled."""
    scheduler = pipe.scheduler if attached else None
    for name in ("transformer", "transformer_2"):
        module: nn.Module = getattr(pipe, name)
        subject = graphcache.compile(
            module, policy, backend="eager", scheduler=scheduler
        )
        setattr(pipe, name, subject)
    return pipe


def generate(pipe: Any, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    frames: Tensor = pipe(
        prompt_embeds=torch.randn(1, 8, 16, generator=generator),
        negative_prompt_embeds=torch.randn(1, 8, 16, generator=generator),
        height=64,
        width=64,
        num_frames=5,
        num_inference_steps=steps,
        guidance_scale=3.0,
        latents=torch.randn(1, 4, 2, 8, 8, generator=generator),
        output_type="latent",
        **kwargs,
    ).frames
    return frames


class Spy:
    """Notes the steps of a module's calls, by stream."""

    def __init__(self, module: Any) -> None:
        runner = module._graphcache_runner
        self.steps: dict[str, list[Step]] = {}
        self.original = runner.run
        runner.run = self

    def __call__(self, call: Any, loop: Any, stream: Any) -> Any:
        """Note the step and run it."""
        self.steps.setdefault(stream.name, []).append(stream.step)
        return self.original(call, loop, stream)


def two_parts(scheduler: Any) -> list[dict[str, list[Step]]]:
    """What has to be said: each module counts its calls, the loop goes on."""
    whole = expected(scheduler)
    high = [step for step in whole if step.timestep >= 800]
    low = whole[len(high) :]
    assert high
    assert low
    low = [
        Step(index, step.timestep, step.position, step.count, step.sigma)
        for index, step in enumerate(low)
    ]
    return [{"cond": part, "uncond": part} for part in (high, low)]


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_where_the_loop_is(name: str, attached: bool) -> None:
    expected_frames = generate(pipeline(SCHEDULERS[name]()))
    pipe = compiled(pipeline(SCHEDULERS[name]()), never_reuse(), attached=attached)
    spies = [Spy(pipe.transformer), Spy(pipe.transformer_2)]
    assert torch.equal(generate(pipe), expected_frames)
    assert [spy.steps for spy in spies] == two_parts(pipe.scheduler)


def test_frames_with_timesteps_of_their_own() -> None:
    """As Wan 2.2's text to video with one timestep per patch."""
    scheduler = SCHEDULERS["euler"]()
    pipe = compiled(pipeline(scheduler, expand_timesteps=True), never_reuse())
    spies = [Spy(pipe.transformer), Spy(pipe.transformer_2)]
    generate(pipe)
    assert [spy.steps for spy in spies] == two_parts(scheduler)


@pytest.mark.parametrize("attached", [False, True])
def test_a_mask_is_that_of_the_whole_loop(attached: bool) -> None:
    mask = Policy("mask", Attention(), Mask((1, 0, 1, 0, 1, 0), steps=STEPS))
    pipe = compiled(pipeline(SCHEDULERS["euler"]()), mask, attached=attached)
    good = generate(pipe)
    with pytest.raises(PolicyError, match="for 6 steps and the loop has 7"):
        generate(pipe, steps=7)
    assert torch.equal(generate(pipe), good)


def ratios_of(steps: int) -> list[float]:
    """A magnitude that shrinks a little at every step."""
    return [1.0, *[0.99] * (steps - 1)]


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_magcache_schedule_for_each_expert(name: str, attached: bool) -> None:
    """Ratios of the steps that each sees: its own calls are counted."""
    parts = two_parts(scheduled_for(name))
    counts = [len(part["cond"]) for part in parts]
    policies = [
        magcache(ratios_of(count), threshold=0.02, max_skip=1, retention=0)
        for count in counts
    ]
    pipe = pipeline(SCHEDULERS[name]())
    scheduler = pipe.scheduler if attached else None
    for part, policy in zip(("transformer", "transformer_2"), policies, strict=True):
        subject = graphcache.compile(
            getattr(pipe, part), policy, backend="eager", scheduler=scheduler
        )
        setattr(pipe, part, subject)
    generate(pipe)
    for part, count, policy in zip(
        (pipe.transformer, pipe.transformer_2), counts, policies, strict=True
    ):
        decision = policy.decision
        assert isinstance(decision, Mask)
        computed = [
            record.computed["magcache"]
            for record in part.cache_stats.steps
            if record.stream == "cond"
        ]
        assert computed == [*decision.computed]
        assert len(computed) == count


def scheduled_for(name: str) -> Any:
    scheduler = SCHEDULERS[name]()
    pipe = pipeline(scheduler)
    generate(pipe)
    return pipe.scheduler


def test_an_expert_with_a_schedule_for_another_number_is_refused() -> None:
    parts = two_parts(scheduled_for("euler"))
    count = len(parts[1]["cond"])
    for wrong in (count - 1, count + 1):
        pipe = pipeline(SCHEDULERS["euler"]())
        policy = magcache(ratios_of(wrong), retention=0)
        pipe.transformer_2 = graphcache.compile(
            pipe.transformer_2, policy, backend="eager"
        )
        with pytest.raises(PolicyError, match=f"for {wrong} steps and the loop has 6"):
            generate(pipe)
        assert not pipe.transformer_2.cache_stats.steps


def test_a_model_that_sees_all_steps_is_refused_another_number() -> None:
    """More at once; fewer when its schedule is over, for it may be one of several."""
    for wrong in (4, 8):
        pipe = pipeline(SCHEDULERS["euler"]())
        pipe.register_to_config(boundary_ratio=None)
        policy = magcache(ratios_of(wrong), retention=0)
        pipe.transformer = graphcache.compile(pipe.transformer, policy, backend="eager")
        with pytest.raises(PolicyError, match=f"for {wrong} steps and the loop has 6"):
            generate(pipe)
        ran = len(pipe.transformer.cache_stats.steps)
        assert ran == (0 if wrong > STEPS else 2 * wrong)


@cache
def shared(policy: Policy) -> Any:
    """A pipeline for all tests of a policy: what one left behind must not show."""
    pipe = compiled(pipeline(SCHEDULERS["euler"]()), policy)
    for module in (pipe.transformer, pipe.transformer_2):
        module.cache_thresholds.update(dict.fromkeys(module.cache_thresholds, 2.0))
    return pipe


@pytest.mark.parametrize("policy", [DYNAMIC, STATIC])
@pytest.mark.parametrize("stop", range(STEPS - 1))
def test_a_generation_that_was_given_up(policy: Policy, stop: int) -> None:
    """Between two steps, by the user: no call fails and nothing is reset."""
    pipe = shared(policy)

    def interrupt(pipe: Any, step: int, t: Any, values: Any) -> Any:
        if step == stop:
            raise KeyboardInterrupt
        return values

    expected_frames = generate(pipe)
    with pytest.raises(KeyboardInterrupt):
        generate(pipe, seed=1, callback_on_step_end=interrupt)
    assert torch.equal(generate(pipe), expected_frames)


@pytest.mark.parametrize("policy", [DYNAMIC, STATIC])
def test_the_policies_reuse(policy: Policy) -> None:
    """Else that test would test nothing."""
    pipe = shared(policy)
    generate(pipe)
    for module in (pipe.transformer, pipe.transformer_2):
        assert module.cache_stats.reused[policy.name] > 0
        assert module.cache_stats.computed[policy.name] > 0
