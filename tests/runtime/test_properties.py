"""Streams and generations never touch: each output is that of its stream run alone.

The oracle is a module compiled afresh that runs one stream from its first step and
nothing else. The subject runs generation after generation, in any mode, ended in any
way; what earlier ones left behind must show in no output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import graphcache
from graphcache.runtime import stepper
from graphcache.runtime.segment import Frame
from tests.models import tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC

POLICIES = {"static": STATIC, "dynamic": DYNAMIC}
STEPS = 7
SEEDS = range(1, 5)
MODES = ("order", "contexts", "placed contexts")
ERRORS = ("arguments", "decision", "end of the call")
ENDS = ("reset", "nothing", "error in a context", *ERRORS)

every_policy = pytest.mark.parametrize("policy", POLICIES)
# An example is some dozens of calls, and all together take a second.
many = settings(max_examples=200, deadline=None)


def compiled(policy: str) -> Any:
    return graphcache.compile(tiny(depth=3), POLICIES[policy], backend="eager")


# Examples share a module: a reset, at the start of each, is as good as another.
subject_of = cache(compiled)


@dataclass
class Pass:
    """One stream's way through the loop, moved by its outputs."""

    seed: int
    step: int = 0
    inputs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = tiny_inputs(seed=self.seed)

    def call(self, module: Any, **more: Any) -> Tensor:
        """The output of the next step."""
        self.inputs["timestep"] = torch.full((2,), 999.0 - 140.0 * self.step)
        output: Tensor = module(**self.inputs, **more)[0].clone()
        self.inputs["hidden_states"] = self.inputs["hidden_states"] - 0.1 * output
        self.step += 1
        return output


@cache
def alone(policy: str, seed: int) -> list[Tensor]:
    """All outputs of a stream on a module compiled afresh."""
    module, stream = compiled(policy), Pass(seed)
    with torch.no_grad():
        return [stream.call(module) for _ in range(STEPS)]


@dataclass(frozen=True)
class Generation:
    """A loop over some streams, and how it ends.

    Attributes:
        mode: How streams and steps are told.
        seeds: Of the streams; a stream's name has nothing to do with its seed.
        steps: Steps of the loop.
        end: What happens after the last call, or at it.
        early: How many of the last calls are never made.
        order: Orders the calls of streams that have names.
    """

    mode: str
    seeds: list[int]
    steps: int
    end: str
    early: int
    order: list[int]

    @property
    def turns(self) -> list[int]:
        """Which stream is called next, by its place in `seeds`."""
        calls = [stream for _ in range(self.steps) for stream in range(len(self.seeds))]
        if self.mode != "order":
            # Any order of calls will do: each stream still goes from step to step.
            keyed = zip(calls, self.order, strict=False)
            calls = [stream for stream, _ in sorted(keyed, key=lambda pair: pair[1])]
        return calls[: max(1, len(calls) - self.early)]

    @property
    def tells(self) -> bool:
        """Whether its end, or the start of another after it, can be told."""
        return self.end != "nothing" or self.mode != "order" or self._moved

    @property
    def _moved(self) -> bool:
        return len(self.turns) > len(self.seeds)


generations = st.builds(
    Generation,
    mode=st.sampled_from(MODES),
    seeds=st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3),
    steps=st.integers(1, STEPS),
    # The end that nobody tells is the hardest.
    end=st.just("nothing") | st.sampled_from(ENDS),
    early=st.integers(0, 6),
    order=st.lists(
        st.integers(0, 99), min_size=3 * STEPS, max_size=3 * STEPS, unique=True
    ),
)


def context_of(module: Any, generation: Generation, name: int, step: int) -> Any:
    if generation.mode == "order":
        return nothing()
    place = {}
    if generation.mode == "placed contexts":
        place = {"step_index": step, "num_inference_steps": generation.steps}
    return module.cache_context(f"stream {name}", **place)


@contextmanager
def nothing() -> Iterator[None]:
    """No context."""
    yield


@contextmanager
def failing(where: str) -> Iterator[None]:
    """Calls inside fail there, with what they did until then half done."""

    def after(*args: Any) -> Any:
        original(*args)
        raise KeyboardInterrupt

    def instead(*args: Any) -> Any:
        raise KeyboardInterrupt

    original = stepper.run_route
    with pytest.MonkeyPatch.context() as patch:
        if where == "end of the call":
            patch.setattr(stepper, "run_route", after)
        if where == "decision":
            patch.setattr(Frame, "decide", instead)
        yield


def run(module: Any, policy: str, generation: Generation) -> None:
    """Run a generation; every output is compared."""
    streams = [Pass(seed) for seed in generation.seeds]
    turns = generation.turns
    for turn in turns:
        check(module, policy, generation, streams, turn)
    # The call that fails is one more, of the first stream.
    if generation.end in ERRORS:
        fail(module, generation, streams)
    if generation.end == "error in a context":
        with pytest.raises(KeyboardInterrupt), module.cache_context("stream 0"):
            raise KeyboardInterrupt
    if generation.end == "reset":
        module._reset_stateful_cache()


def check(
    module: Any, policy: str, generation: Generation, streams: list[Pass], turn: int
) -> None:
    stream = streams[turn]
    expected = alone(policy, stream.seed)[stream.step]
    with context_of(module, generation, turn, stream.step):
        assert torch.equal(stream.call(module), expected)


def fail(module: Any, generation: Generation, streams: list[Pass]) -> None:
    stream = streams[0]
    wrong = {"unknown": 1} if generation.end == "arguments" else {}
    error = TypeError if wrong else KeyboardInterrupt
    context = context_of(module, generation, 0, stream.step)
    runs = failing(generation.end)
    if generation.end == "decision":
        # Only a call that asks for a score fails there; make sure that one does.
        runs = failing("decision" if has_decisions(module) else "end of the call")
    with pytest.raises(error), runs, context:
        stream.call(module, **wrong)


def has_decisions(module: Any) -> bool:
    return bool(module.cache_thresholds)


@every_policy
def test_the_policies_reuse(policy: str) -> None:
    """Else nothing here would be tested."""
    plain, stream = tiny(depth=3), Pass(1)
    with torch.no_grad():
        uncached = [stream.call(plain) for _ in range(STEPS)]
    assert not all(map(torch.equal, uncached, alone(policy, 1)))
    assert not all(map(torch.equal, alone(policy, 1), alone(policy, 2)))


@every_policy
@many
@given(generation=generations)
def test_interleaved_streams_are_each_as_alone(
    policy: str, generation: Generation
) -> None:
    module = subject_of(policy)
    module._reset_stateful_cache()
    with torch.no_grad():
        run(module, policy, generation)


@every_policy
@many
@given(first=generations, second=generations)
def test_reset_is_fresh(policy: str, first: Generation, second: Generation) -> None:
    module = subject_of(policy)
    module._reset_stateful_cache()
    with torch.no_grad():
        run(module, policy, first)
        module._reset_stateful_cache()
        assert module._graphcache_runner.clock.streams == {}
        run(module, policy, second)


@every_policy
@many
@given(plan=st.lists(generations, min_size=2, max_size=4))
def test_no_output_depends_on_an_earlier_generation(
    policy: str, plan: list[Generation]
) -> None:
    assume(all(generation.tells for generation in plan[:-1]))
    module = subject_of(policy)
    module._reset_stateful_cache()
    with torch.no_grad():
        for generation in plan:
            run(module, policy, generation)


@every_policy
@pytest.mark.parametrize("end", ["error in a context", *ERRORS])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=4, deadline=None)
@given(steps=st.integers(1, STEPS - 1), seed=st.sampled_from(SEEDS))
def test_an_exception_at_any_call_leaves_nothing_behind(
    policy: str, end: str, mode: str, steps: int, seed: int
) -> None:
    module = subject_of(policy)
    module._reset_stateful_cache()
    broken = Generation(mode, [seed, seed], steps, end, steps % 2, [*range(2 * STEPS)])
    whole = Generation(mode, [*SEEDS], STEPS, "nothing", 0, [*range(4 * STEPS)])
    with torch.no_grad():
        run(module, policy, broken)
        assert module._graphcache_runner.clock.streams == {}
        run(module, policy, whole)
