"""Requests: each has streams of its own, whichever thread or task its calls come from.

The oracle is always a module compiled afresh that runs one generation alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import threading
from collections.abc import Callable, Generator, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

import graphcache
from graphcache import GraphCacheError, fastercache, taylorseer, teacache
from graphcache import pyramid_attention_broadcast as pab
from graphcache.backends.dynamo import statistics
from graphcache.runtime.requests import request
from graphcache.runtime.stats import StepRecord
from tests.doors import behind_dynamo
from tests.models import TinyTransformer, same, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC

STEPS = 6
POLICIES: dict[str, Callable[[], Any]] = {
    "interval": lambda: STATIC,
    "first block": lambda: DYNAMIC,
    "taylorseer": lambda: taylorseer(3, before=2, dtype=None),
    "pab": lambda: pab(spatial=2, window=(100, 800)),
    "fastercache": lambda: fastercache(spatial=2, window=None),
    "teacache, hoisted": lambda: teacache(0.2, timestep_only=True),
    "both kinds": lambda: [DYNAMIC, STATIC],
}
every_policy = pytest.mark.parametrize("policy", POLICIES)
some_policies = pytest.mark.parametrize(
    "policy", ["first block", "taylorseer", "teacache, hoisted"]
)


def compiled(policy: str = "interval", **kwargs: Any) -> Any:
    return graphcache.compile(
        tiny(depth=2), POLICIES[policy](), backend="eager", **kwargs
    )


# Threads that have ended leave nothing behind; the tests hold that.
shared = cache(compiled)


@cache
def oracle(policy: str) -> Any:
    """Another one, which runs one generation after the other."""
    return compiled(policy)


def generation(
    module: Any, seed: int, *, steps: int = STEPS, tokens: int = 3
) -> Iterator[Tensor]:
    """One generation; each step is one output."""
    inputs = tiny_inputs(seed=seed, tokens=tokens)
    for step in range(steps):
        inputs["timestep"] = torch.full((2,), 999.0 - 140.0 * step)
        with torch.no_grad():
            (output,) = module(**inputs)
        inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
        yield output.clone()


@cache
def alone(policy: str, seed: int, **kwargs: Any) -> list[Tensor]:
    module = oracle(policy)
    module._reset_stateful_cache()
    return list(generation(module, seed, **kwargs))


def exhaust(steps: Iterator[Tensor]) -> None:
    for _ in steps:
        pass


def in_threads(*works: Callable[[], None]) -> None:
    """Run each in a thread; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def taking_turns(
    module: Any, seeds: tuple[int, ...], *, generation: Any = generation
) -> Any:
    """Generations in a thread each, step by step in turn."""
    barrier = threading.Barrier(len(seeds), timeout=60)
    found: dict[int, list[Tensor]] = {}

    def run(seed: int) -> None:
        outputs = found.setdefault(seed, [])
        for output in generation(module, seed):
            outputs.append(output)
            barrier.wait()

    in_threads(*(lambda seed=seed: run(seed) for seed in seeds))
    return found


@every_policy
def test_threads_are_each_as_alone(policy: str) -> None:
    module = shared(policy)
    found = taking_turns(module, (1, 2))
    for seed in (1, 2):
        assert same(found[seed], alone(policy, seed))
    stats = module.cache_stats
    assert stats.captures == 1
    assert sum(stats.reused.values()) > 0


@some_policies
def test_threads_behind_torch_compile_are_each_as_alone(policy: str) -> None:
    """Both make the first call, which is compiled once."""
    module = behind_dynamo(tiny(depth=2), POLICIES[policy]())
    found = taking_turns(module, (1, 2))
    for seed in (1, 2):
        assert same(found[seed], alone(policy, seed))
    stats = statistics(module)
    assert sum(stats.reused.values()) > 0
    assert stats.captures == 1
    torch._dynamo.reset()


class Contextual(TinyTransformer, CacheMixin):
    """A transformer with the contexts of diffusers."""


def in_contexts(module: Any, seed: int) -> Iterator[Tensor]:
    """One generation of two streams, with the names that every pipeline gives."""
    states = [tiny_inputs(seed=seed + 10 * number) for number in range(2)]
    for step in range(STEPS):
        for name, inputs in zip(("cond", "uncond"), states, strict=True):
            inputs["timestep"] = torch.full((2,), 999.0 - 140.0 * step)
            place = {"step_index": step, "num_inference_steps": STEPS}
            with torch.no_grad(), module.cache_context(name, **place):
                (output,) = module(**inputs)
            inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
            yield output.clone()


@pytest.mark.parametrize("door", ["compile", "torch.compile"])
def test_contexts_of_threads_are_their_own_behind_both_doors(door: str) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        module = Contextual().eval()
        if door == "compile":
            return graphcache.compile(module, DYNAMIC, backend="eager")
        return behind_dynamo(module, DYNAMIC)

    want = {seed: list(in_contexts(made(), seed)) for seed in (1, 2)}
    module = made()
    found = taking_turns(module, (1, 2), generation=in_contexts)
    for seed in (1, 2):
        assert same(found[seed], want[seed])
    stats = module.cache_stats if door == "compile" else statistics(module)
    assert {record.stream for record in stats.steps} == {"cond", "uncond"}
    torch._dynamo.reset()


def test_threads_of_other_shapes_are_captured_once_each() -> None:
    """One captures while the other one runs."""
    module = compiled("first block")
    found: dict[int, list[Tensor]] = {}

    def run(tokens: int) -> None:
        found[tokens] = list(generation(module, tokens, tokens=tokens))

    in_threads(*(lambda tokens=tokens: run(tokens) for tokens in (3, 4, 3 + 2)))
    for tokens, outputs in found.items():
        assert same(outputs, alone("first block", tokens, tokens=tokens))
    assert module.cache_stats.captures == 3


def test_the_first_call_of_many_threads_compiles_once() -> None:
    module = compiled()
    barrier = threading.Barrier(4, timeout=60)

    def run() -> None:
        barrier.wait()
        list(generation(module, 1, steps=2))

    in_threads(*[run] * 4)
    stats = module.cache_stats
    assert (stats.captures, len(stats.steps)) == (1, 8)


def test_contexts_are_those_of_the_thread() -> None:
    """A context that one thread is in is not heard in another."""
    module = compiled()
    inside, seen = threading.Event(), threading.Event()

    def holder() -> None:
        with module.cache_context("cond", step_index=3):
            inside.set()
            assert seen.wait(60)

    def caller() -> None:
        assert inside.wait(60)
        list(generation(module, 1, steps=1))
        seen.set()

    in_threads(holder, caller)
    assert [record.stream for record in module.cache_stats.steps] == ["call 0"]


def test_counters_add_up() -> None:
    module = compiled("both kinds")
    list(generation(module, 0))
    stats = module.cache_stats
    once = {**stats.computed}, {**stats.reused}, stats.host_reads
    module._reset_stateful_cache()
    stats.clear()
    in_threads(*[lambda: exhaust(generation(module, 0))] * 8)
    assert len(stats.steps) == 8 * STEPS
    assert dict(stats.computed) == {k: 8 * v for k, v in once[0].items()}
    assert dict(stats.reused) == {k: 8 * v for k, v in once[1].items()}
    assert stats.host_reads == 8 * once[2]


def test_records_say_which_request() -> None:
    module = compiled()
    list(generation(module, 1, steps=1))
    with module.request("r1"):
        list(generation(module, 1, steps=1))
    thread = threading.Thread(
        target=lambda: list(generation(module, 1, steps=1)), name="worker"
    )
    thread.start()
    thread.join()
    names = [record.request for record in module.cache_stats.steps]
    assert names == ["MainThread", "r1", "worker"]
    lines = str(module.cache_stats).splitlines()[:3]
    assert [line.split("  ")[0].strip() for line in lines] == [
        "MainThread: call 0",
        "r1: call 0",
        "worker: call 0",
    ]


def streams_of(module: Any) -> int:
    return sum(len(clock.streams) for clock in module._graphcache_runner.requests)


def test_what_a_request_holds_is_freed_with_it() -> None:
    module = compiled()
    for number in range(500):
        with module.request(number):
            list(generation(module, 1, steps=1))
    assert streams_of(module) == 0
    in_threads(lambda: exhaust(generation(module, 1, steps=2)))
    gc.collect()
    assert streams_of(module) == 0
    list(generation(module, 1, steps=2))
    assert streams_of(module) == 1


def test_a_reset_and_an_error_are_the_requests_own() -> None:
    module = compiled()
    mine = generation(module, 1)
    outputs = [next(mine) for _ in range(2)]

    def other() -> None:
        list(generation(module, 2, steps=3))
        module._reset_stateful_cache()
        with pytest.raises(TypeError):
            module(unknown=1)
        with pytest.raises(KeyError), module.cache_context("cond"):
            raise KeyError

    in_threads(other)
    with pytest.raises(TypeError), module.request("r"):
        module(unknown=1)
    assert same([*outputs, *mine], alone("interval", 1))


@some_policies
def test_requests_in_turn_in_one_thread(policy: str) -> None:
    """By generators, which do not keep their context to themselves."""
    module = shared(policy)
    module._reset_stateful_cache()

    def inside(seed: int) -> Generator[Tensor, None, None]:
        with module.request(seed):
            yield from generation(module, seed)

    first, second, bare = inside(1), inside(2), generation(module, 3)
    found: dict[int, list[Tensor]] = {1: [], 2: [], 3: []}
    for step in range(STEPS):
        turns = ((1, first), (3, bare), (2, second))
        for seed, turn in turns if step % 2 else reversed(turns):
            found[seed].append(next(turn))
    for open_one in (first, second):
        with pytest.raises(StopIteration):
            next(open_one)
    for seed, outputs in found.items():
        assert same(outputs, alone(policy, seed))
    assert streams_of(module) == 1


def test_scopes_behind_other_context_managers() -> None:
    module = compiled()

    @contextlib.contextmanager
    def serving(name: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(module.request(name))
            yield

    def inside(name: str, seed: int) -> Iterator[Tensor]:
        with serving(name):
            yield from generation(module, seed)

    first, second = inside("a", 1), inside("b", 2)
    found = [[next(first), next(second)] for _ in range(STEPS)]
    for seed, outputs in zip((1, 2), zip(*found, strict=True), strict=True):
        assert same([*outputs], alone("interval", seed))
    with serving("c"):
        list(generation(module, 1, steps=1))
    names = [record.request for record in module.cache_stats.steps]
    assert names == [*["a", "b"] * STEPS, "c"]


@pytest.mark.parametrize("named", [True, False])
def test_tasks_in_one_thread(named: bool) -> None:
    """With a request each, or without a word; one was begun before in the thread."""
    module = compiled("first block")
    outside = generation(module, 3)
    began = [next(outside)]

    async def serve(seed: int) -> list[Tensor]:
        scope = module.request(seed) if named else contextlib.nullcontext()
        outputs = []
        with scope:
            for output in generation(module, seed):
                outputs.append(output)
                await asyncio.sleep(0)
        return outputs

    async def main() -> list[list[Tensor]]:
        return [*await asyncio.gather(serve(1), serve(2))]

    for seed, outputs in zip((1, 2), asyncio.run(main()), strict=True):
        assert same(outputs, alone("first block", seed))
    assert same([*began, *outside], alone("first block", 3))


def test_a_step_in_a_thread_of_a_pool_belongs_to_the_request_of_its_task() -> None:
    module = compiled("taylorseer")

    async def serve(seed: int) -> list[Tensor]:
        outputs = []
        with request(seed):
            steps = generation(module, seed)
            for _ in range(STEPS):
                outputs.append(await asyncio.to_thread(next, steps))
        return outputs

    async def main() -> list[list[Tensor]]:
        return [*await asyncio.gather(serve(1), serve(2))]

    for seed, outputs in zip((1, 2), asyncio.run(main()), strict=True):
        assert same(outputs, alone("taylorseer", seed))
    assert streams_of(module) == 0


def test_scopes_of_one_name_are_one_request() -> None:
    """A server that goes from step to step holds both open."""
    module = compiled()
    steps = {name: generation(module, name) for name in (1, 2)}
    found: dict[int, list[Tensor]] = {1: [], 2: []}
    with module.request(1), module.request(2):
        for _ in range(STEPS):
            for name in (1, 2):
                with module.request(name):
                    found[name].append(next(steps[name]))
        assert streams_of(module) == 2
    assert streams_of(module) == 0
    for name, outputs in found.items():
        assert same(outputs, alone("interval", name))


def test_a_request_covers_every_module() -> None:
    modules = [compiled(), compiled()]
    with request("r"):
        for module in modules:
            list(generation(module, 1, steps=2))
    assert [streams_of(module) for module in modules] == [0, 0]
    assert {r.request for m in modules for r in m.cache_stats.steps} == {"r"}
    with modules[0].request("own"):
        for module in modules:
            list(generation(module, 1, steps=1))
    latest = [module.cache_stats.steps[-1].request for module in modules]
    assert latest == ["own", "MainThread"]


def test_two_threads_in_one_request_are_refused_in_words() -> None:
    module = compiled()
    good = alone("interval", 1)
    running, tried = threading.Event(), threading.Event()
    stepper = module._graphcache_runner
    original = stepper.run

    def slow(*args: Any) -> Any:
        running.set()
        assert tried.wait(60)
        return original(*args)

    def first() -> None:
        stepper.run = slow
        with module.request("one"):
            assert same(list(generation(module, 1)), good)

    def second() -> None:
        assert running.wait(60)
        try:
            with module.request("one"):
                with pytest.raises(GraphCacheError, match="'one' has a call in prog"):
                    list(generation(module, 2))
        finally:
            tried.set()

    in_threads(first, second)


def test_a_scope_is_entered_once() -> None:
    scope = compiled().request("r")
    with scope, pytest.raises(GraphCacheError, match="'r' was entered already"):
        scope.__enter__()


def test_a_cache_that_is_disabled_is_disabled_for_all() -> None:
    """And what was held before is read by nobody after."""
    module, plain = compiled(), tiny(depth=2)
    theirs = generation(module, 2)
    with module.request("other"):
        next(theirs)
    with module.request("other") as _, contextlib.closing(theirs):
        next(theirs)
        threading.Thread(target=module.disable_cache).start()
        while module.is_cache_enabled:
            pass
        inputs = tiny_inputs(timestep=500)
        with torch.no_grad():
            assert torch.equal(module(**inputs)[0], plain(**inputs)[0])
        in_threads(module.enable_cache)
        # Its buffers were let go of: it computes, where the interval would reuse.
        next(theirs)
        assert module.cache_stats.steps[-1].computed == {"attention": True}


def test_statistics_can_be_copied() -> None:
    module = compiled()
    list(generation(module, 1, steps=2))
    for twin in (
        copy.deepcopy(module.cache_stats),
        pickle.loads(pickle.dumps(module.cache_stats)),
    ):
        assert twin == module.cache_stats
        twin.record(StepRecord("c", 0, None, {"attention": True}), twin.regions)
        assert twin != module.cache_stats
