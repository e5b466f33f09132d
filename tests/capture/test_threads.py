"""Captures in several threads at once, and threads that run while one captures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend

import graphcache
from graphcache import never_reuse
from graphcache.capture.threads import alone
from graphcache.locking import compiling
from tests.doors import behind_dynamo
from tests.models import tiny, tiny_inputs


def together(*works: Callable[[], None]) -> None:
    """Run all at once; raises what one of them raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait()
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def checked(subject: nn.Module, reference: nn.Module, first: int) -> None:
    """Three sizes, each a capture."""
    with torch.no_grad():
        for tokens in range(first, first + 3):
            given = tiny_inputs(tokens=tokens, seed=tokens)
            assert torch.equal(subject(**given)[0], reference(**given)[0])


def direct(module: nn.Module) -> Any:
    return graphcache.compile(module, never_reuse(), backend="eager")


def made() -> nn.Module:
    return tiny(cross=True).requires_grad_(False)


@pytest.mark.parametrize("case", ["two modules", "one module", "one compiled"])
def test_two_threads_capture_at_once(case: str) -> None:
    modules = [made(), made()]
    if case != "two modules":
        modules[1] = modules[0]
    subjects = [direct(module) for module in modules]
    if case == "one compiled":
        subjects[1] = subjects[0]
    together(
        partial(checked, subjects[0], made(), 3),
        partial(checked, subjects[1], made(), 8),
    )
    checked(modules[0], made(), 3)


def test_both_doors_at_once() -> None:
    lookup_backend("graphcache")
    subjects = [direct(made()), behind_dynamo(made(), never_reuse())]
    together(
        partial(checked, subjects[0], made(), 3),
        partial(checked, subjects[1], made(), 8),
    )


def test_a_module_runs_while_another_thread_captures_it() -> None:
    module, reference, done = made(), made(), threading.Event()
    subject = direct(module)
    given = tiny_inputs(tokens=2)
    with torch.no_grad():
        want = module(**given)[0]
        subject(**given)

    def capture() -> None:
        try:
            checked(subject, reference, 3)
        finally:
            done.set()

    def run() -> None:
        with torch.no_grad():
            while not done.is_set():
                # The module itself: neither its forward nor its weights are swapped.
                assert torch.equal(module(**given)[0], want)
                assert type(module.blocks[0].ff.weight) is nn.Parameter

    together(capture, run)


def test_the_lock_may_be_taken_again_and_is_one() -> None:
    held = []
    with compiling(), compiling():
        thread = threading.Thread(
            target=lambda: held.append(compiling().acquire(blocking=False))  # type: ignore[attr-defined]
        )
        thread.start()
        thread.join()
    assert held == [False]


def test_what_torch_patches_is_put_back() -> None:
    from torch.fx import _symbolic_trace

    before = _symbolic_trace._Patcher.patch_method
    with alone():
        assert _symbolic_trace._Patcher.patch_method is not before
    assert _symbolic_trace._Patcher.patch_method is before
