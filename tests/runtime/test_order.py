"""Streams without contexts: told apart by their prompts, and by their order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from torch import Tensor

import graphcache
from graphcache import fora
from graphcache.policy import Attention, Interval, Policy
from graphcache.runtime.prompts import Given, Mark
from graphcache.runtime.streams import Stream
from tests.models import same, tiny, tiny_inputs
from tests.runtime.loops import clock
from tests.runtime.policies import DYNAMIC

EVERY_SECOND = Policy("attention", Attention(), Interval(2))


def compiled(policy: Any = EVERY_SECOND) -> Any:
    return graphcache.compile(tiny(), policy, backend="eager")


@cache
def shared() -> Any:
    return compiled()


@cache
def oracle(policy: Any) -> Any:
    """Another one, which runs one stream after the other."""
    return compiled(policy)


class Pass:
    """One stream's way through a loop, moved by its outputs."""

    def __init__(self, seed: int) -> None:
        self.inputs = tiny_inputs(seed=seed)
        self.outputs: list[Tensor] = []

    def call(self, module: Any, timestep: float, *, view: bool = False) -> None:
        """One call; with `view`, of another view of the prompt each time."""
        given = {**self.inputs, "timestep": torch.full((2,), timestep)}
        if view:
            given["encoder_hidden_states"] = given["encoder_hidden_states"][:]
        with torch.no_grad():
            (output,) = module(**given)
        self.outputs.append(output.clone())
        moved = self.inputs["hidden_states"] - 0.1 * output
        self.inputs["hidden_states"] = moved


def alone(seed: int, timesteps: Sequence[float], policy: Any = EVERY_SECOND) -> Any:
    """The oracle: nothing but this stream, in a context of its own."""
    module, stream = oracle(policy), Pass(seed)
    module._reset_stateful_cache()
    with module.cache_context("alone"):
        for timestep in timesteps:
            stream.call(module, timestep)
    return stream.outputs


TIMES = [900.0, 800.0, 700.0, 600.0, 500.0, 400.0, 300.0]


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("first_ends", [True, False])
def test_one_of_two_ends_in_mid_loop(first_ends: bool, view: bool) -> None:
    """Guidance that ends: the unconditional call comes first, or second."""
    module = shared()
    module._reset_stateful_cache()
    streams = [Pass(1), Pass(2)]
    kept = 1 if first_ends else 0
    for step, timestep in enumerate(TIMES):
        for number, stream in enumerate(streams):
            if number == kept or step < 3:
                stream.call(module, timestep, view=view)
    assert same(streams[kept].outputs, alone(kept + 1, TIMES))
    assert same(streams[1 - kept].outputs, alone(2 - kept, TIMES[:3]))


def test_one_that_begins_and_comes_back_in_mid_loop() -> None:
    module = shared()
    module._reset_stateful_cache()
    late, always = Pass(1), Pass(2)
    for step, timestep in enumerate(TIMES):
        if step in (2, 3, 5, 6):
            late.call(module, timestep)
        always.call(module, timestep)
    assert same(always.outputs, alone(2, TIMES))
    assert same(late.outputs, alone(1, [TIMES[step] for step in (2, 3, 5, 6)]))


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("policy", [fora(2), DYNAMIC])
def test_a_solver_that_calls_twice_at_one_timestep(policy: Any, streams: int) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(6)
    timesteps = [float(t) for t in scheduler.timesteps]
    assert len(set(timesteps)) < len(timesteps)
    module = compiled(policy)
    passes = [Pass(seed) for seed in range(1, streams + 1)]
    for timestep in timesteps:
        for stream in passes:
            stream.call(module, timestep)
    for seed, stream in enumerate(passes, 1):
        assert same(stream.outputs, alone(seed, timesteps, policy))


def test_the_second_of_two_goes_on_alone_with_another_shape() -> None:
    """It is known by its prompt, and what was held for the first is not read."""
    module = shared()
    module._reset_stateful_cache()
    module.cache_stats.clear()
    streams = [Pass(1), Pass(2)]
    for step, timestep in enumerate(TIMES):
        for number, stream in enumerate(streams):
            if step == 3:
                stream.inputs["hidden_states"] = torch.randn(2, 5, 8)
            if number == 1 or step < 3:
                stream.call(module, timestep)
    alone = [r for r in module.cache_stats.steps if r.timestep <= TIMES[3]]
    assert [r.stream for r in alone] == ["call 1"] * 4
    assert [r.index for r in alone] == [3, 4, 5, 6]
    assert [r.computed["attention"] for r in alone] == [True, True, False, True]


def test_two_streams_of_one_prompt_keep_apart() -> None:
    """As from the first step on; and where one begins later with the same latents."""
    module = shared()
    module._reset_stateful_cache()
    first, second = Pass(1), Pass(1)
    second.inputs["encoder_hidden_states"] = first.inputs["encoder_hidden_states"]
    second.inputs["hidden_states"] = second.inputs["hidden_states"] + 1.0
    for timestep in TIMES:
        first.call(module, timestep)
        second.call(module, timestep)
    assert same(first.outputs, alone(1, TIMES))
    expected = Pass(1)
    expected.inputs["hidden_states"] = expected.inputs["hidden_states"] + 1.0
    fresh = compiled()
    for timestep in TIMES:
        expected.call(fresh, timestep)
    assert same(second.outputs, expected.outputs)


def test_a_perturbed_call_of_the_same_latents_is_another_stream() -> None:
    module = shared()
    module._reset_stateful_cache()
    module.cache_stats.clear()
    stream = Pass(1)
    for step, timestep in enumerate(TIMES):
        given = {**stream.inputs, "timestep": torch.full((2,), timestep)}
        stream.call(module, timestep)
        if step >= 3:
            with torch.no_grad():
                module(**given)
    names = [record.stream for record in module.cache_stats.steps]
    assert names == ["call 0"] * 3 + ["call 0", "call 1"] * 4
    assert same(stream.outputs, alone(1, TIMES))


def test_another_prompt_keeps_the_place_and_reuses_nothing() -> None:
    module = shared()
    module._reset_stateful_cache()
    module.cache_stats.clear()
    stream, other = Pass(1), Pass(2)
    for step, timestep in enumerate(TIMES):
        if step == 3:
            # An odd step, at which the interval reuses.
            stream.inputs = other.inputs
        stream.call(module, timestep)
    computed = [r.computed["attention"] for r in module.cache_stats.steps]
    assert computed == [True, False, True, True, True, False, True]
    assert [r.index for r in module.cache_stats.steps] == [*range(7)]


def test_a_prompt_that_is_written_to_is_another() -> None:
    module = shared()
    module._reset_stateful_cache()
    module.cache_stats.clear()
    stream = Pass(1)
    for step, timestep in enumerate(TIMES):
        if step == 3:
            stream.inputs["encoder_hidden_states"].mul_(2.0)
        with module.cache_context("cond"):
            stream.call(module, timestep)
    computed = [r.computed["attention"] for r in module.cache_stats.steps]
    assert computed == [True, False, True, True, True, False, True]


def test_a_prompt_that_is_made_anew_for_every_call_tells_nothing() -> None:
    """Then the order tells: nothing is lost by it."""
    module = shared()
    module._reset_stateful_cache()
    passes = [Pass(1), Pass(2)]
    for timestep in TIMES:
        for stream in passes:
            prompt = stream.inputs["encoder_hidden_states"]
            stream.inputs["encoder_hidden_states"] = prompt.clone()
            stream.call(module, timestep)
    for seed, stream in enumerate(passes, 1):
        assert same(stream.outputs, alone(seed, TIMES))


def test_an_aborted_first_step_is_told_by_the_prompt() -> None:
    module = shared()
    module._reset_stateful_cache()
    Pass(1).call(module, TIMES[0])
    stream = Pass(2)
    for timestep in TIMES:
        stream.call(module, timestep)
    assert same(stream.outputs, alone(2, TIMES))


def test_a_loop_that_begins_lower_reuses_nothing_of_one_that_was_given_up() -> None:
    """With neither a step index nor a scheduler: its prompt is another."""
    module, plain = shared(), tiny()
    module._reset_stateful_cache()
    aborted = Pass(1)
    for timestep in TIMES[:3]:
        aborted.call(module, timestep)
    stream, expected = Pass(2), Pass(2)
    stream.call(module, TIMES[4])
    expected.call(plain, TIMES[4])
    assert same(stream.outputs, expected.outputs)


def test_a_mark_is_of_one_tensor_only() -> None:
    tensor = torch.randn(2, 4, 8)
    mark = Mark(tensor)
    assert mark.is_of(tensor)
    assert mark.is_of(tensor[:])
    for other in (tensor.clone(), tensor[:1], tensor[1:], tensor.flatten(1)):
        assert not mark.is_of(other)
    tensor.add_(1.0)
    assert not mark.is_of(tensor)
    with torch.inference_mode():
        inference = torch.randn(3)
        assert Mark(inference).is_of(inference)
    # Memory that is used again is another tensor's.
    memory = torch.randn(64).numpy()
    gone = torch.from_numpy(memory)
    mark = Mark(gone)
    del gone
    again = torch.from_numpy(memory)
    assert not mark.is_of(again)
    assert Mark(again).is_of(again)


@pytest.mark.parametrize(
    ("paths", "prompt", "latents"),
    [
        (["hidden_states", "encoder_hidden_states", "timestep"], 1, 0),
        (["hidden_states", "timestep", "encoder_attention_mask"], None, 0),
        (["hidden_states", "encoder_hidden_states_mask", "class_labels"], 2, 0),
        (["x", "t", "cap_feats.0", "cap_feats.1"], 2, 0),
        ([], None, None),
    ],
)
def test_which_argument_is_the_prompt(
    paths: list[str], prompt: int | None, latents: int | None
) -> None:
    tensors = [torch.randn(1) for _ in paths]
    given = Given.of(paths, tensors, "key")
    assert given.prompt is (None if prompt is None else tensors[prompt])
    assert given.latents is (None if latents is None else tensors[latents])


def test_more_calls_than_streams_can_be_are_never_mixed() -> None:
    subject = clock()
    prompts = [torch.randn(2) for _ in range(20)]
    for timestep in (900.0, 800.0):
        seen: list[Stream] = []
        for prompt in prompts:
            given = Given(prompt, torch.randn(2), ())
            stream = subject.tick(torch.tensor([timestep]), lambda: 1.0, given=given)
            assert stream.index == 0
            stream.index += 1
            seen.append(stream)
        assert len({id(stream) for stream in seen}) == 20
        assert len(subject.streams) <= 8
