"""Contexts of diffusers are heard, and no forward is touched for it."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from graphcache.errors import CaptureError
from graphcache.runtime.clock import StepContext
from graphcache.runtime.contexts import LISTENER, listen
from graphcache.runtime.guard import refuse_hooks
from tests.models import tiny
from tests.zoo import ZOO, make


class Heard:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[StepContext | str | None] = []

    def hear(self, context: StepContext | None) -> None:
        """A context is entered, or left."""
        self.told.append(context)

    def reset(self) -> None:
        """A generation has ended."""
        self.told.append("reset")


@pytest.fixture
def module() -> nn.Module:
    return make(ZOO["cogvideox"])


def test_a_context_and_a_reset_are_heard(module: nn.Module) -> None:
    heard = Heard()
    listen(module, heard)
    with module.cache_context("cond", step_index=3, sigma=0.5):
        pass
    module._reset_stateful_cache()
    context = StepContext("cond", step_index=3, sigma=0.5)
    assert heard.told == [None, context, None, "reset"]
    assert "forward" not in module.__dict__


def test_the_context_that_is_entered_already_is_found(module: nn.Module) -> None:
    heard, other = Heard(), Heard()
    with make(ZOO["cogvideox"]).cache_context("another module's"):
        with module.cache_context("cond", num_inference_steps=8):
            listen(module, heard)
            listen(module, other)
    context = StepContext("cond", num_inference_steps=8)
    assert heard.told == other.told == [context, None]


class Holding:
    """Another thread that is inside a context."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        with self.module.cache_context("theirs"):
            self.inside.set()
            assert self.leave.wait(60)

    def __enter__(self) -> Holding:
        self.thread.start()
        assert self.inside.wait(60)
        return self

    def __exit__(self, *args: object) -> None:
        self.leave.set()
        self.thread.join()


def test_a_context_of_another_thread_is_not_this_ones(module: nn.Module) -> None:
    first, second = Heard(), Heard()
    listen(module, first)
    with Holding(module):
        assert not listen(module, second)
    assert second.told == [None, None]


def test_one_that_was_entered_before_may_be_of_another_thread(
    module: nn.Module,
) -> None:
    """It is good for one call, until this thread enters one that is heard."""
    first, second = Heard(), Heard()
    with Holding(module):
        assert listen(module, first)
        assert listen(module, second)
    assert first.told == second.told == [StepContext("theirs"), None]
    with module.cache_context("mine"):
        assert not listen(module, Heard())


def test_a_context_that_was_left_is_not(module: nn.Module) -> None:
    heard = Heard()
    with module.cache_context("cond"):
        pass
    listen(module, heard)
    assert heard.told == [None]


def test_a_module_without_contexts_has_none_to_listen_to() -> None:
    module, heard = tiny(), Heard()
    before = set(module.__dict__)
    listen(module, heard)
    assert set(module.__dict__) == before
    assert not heard.told


def test_nobody_is_kept_alive(module: nn.Module) -> None:
    heard = Heard()
    listen(module, heard)
    ear = HookRegistry.check_if_exists_or_initialize(module).get_hook(LISTENER)
    assert list(ear.listeners) == [heard]
    del heard
    gc.collect()
    assert not list(ear.listeners)


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_hooks_come_and_go_around_it(module: nn.Module, order: tuple[str, str]) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(module)
    own = module.forward
    registry.register_hook(ModelHook(), "first")
    listen(module, Heard())
    registry.register_hook(ModelHook(), "second")
    for name in order:
        registry.remove_hook(name, recurse=False)
    assert module.forward == own


def test_a_copy_has_nobody_who_listens(module: nn.Module) -> None:
    heard = Heard()
    listen(module, heard)
    ear = HookRegistry.check_if_exists_or_initialize(module).get_hook(LISTENER)
    for twin in (copy.deepcopy(ear), pickle.loads(pickle.dumps(ear))):
        assert type(twin) is type(ear)
        assert not list(twin.listeners)


def test_what_listens_is_no_hook_that_is_refused(module: nn.Module) -> None:
    listen(module, Heard())
    refuse_hooks(module, root=False)
    HookRegistry.check_if_exists_or_initialize(module).register_hook(ModelHook(), "x")
    with pytest.raises(CaptureError, match=r"diffusers hooks \(x\)"):
        refuse_hooks(module, root=False)
