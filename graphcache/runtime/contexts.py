"""Contexts: what diffusers' own `cache_context` says, heard without a hook on a call.

`CacheMixin.cache_context` tells every stateful hook in the module's registry where the
loop is, and `_reset_stateful_cache` resets them. A listener in that registry hears
both. It replaces no forward, so that a graph of the module is the same with it.

The registry is one for all threads; who enters a context tells it in a thread of its
own, and there it is kept.
"""

from __future__ import annotations

import gc
import inspect
import threading
from types import GeneratorType
from typing import Any, Protocol
from weakref import WeakSet

from diffusers.hooks.hooks import (
    BaseState,
    CacheContext,
    HookFunctionReference,
    HookRegistry,
    ModelHook,
    StateManager,
)
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from graphcache.runtime.clock import StepContext
from graphcache.runtime.guard import LISTENER


class Listener(Protocol):
    """What is told of contexts and resets."""

    def hear(self, context: StepContext | None) -> None:
        """A context is entered, or left."""
        ...

    def reset(self) -> None:
        """A generation has ended."""
        ...


class _Heard(threading.local):
    """The context that the calling thread is in.

    Attributes:
        context: It.
        guessed: Whether it may be another thread's.
    """

    context: StepContext | None = None
    guessed: bool = False


class _Contexts(StateManager):
    """Passes on what diffusers tells the states of a hook."""

    def __init__(self, listeners: WeakSet[Any]) -> None:
        super().__init__(BaseState)  # type: ignore[arg-type]
        self.listeners = listeners
        self.heard = _Heard()

    def set_context(self, context: CacheContext | None) -> None:
        """Take the context that is entered; None for the one that is left."""
        super().set_context(context)
        heard = None if context is None else StepContext(**vars(context))
        self.heard.context, self.heard.guessed = heard, False
        for listener in [*self.listeners]:
            listener.hear(heard)


class _Ear(ModelHook):
    """A stateful hook in all but the forward."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fn_ref = HookFunctionReference()
        self.listeners: WeakSet[Any] = WeakSet()
        self.contexts = _Contexts(self.listeners)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Reset whoever listens."""
        for listener in [*self.listeners]:
            listener.reset()
        return module

    def __reduce__(self) -> tuple[type[_Ear], tuple[()]]:
        # A copy of the module has nobody who listens to it yet.
        return _Ear, ()


def listen(module: nn.Module, listener: Listener) -> bool:
    """Have a listener told of the module's cache contexts, for as long as it lives.

    Args:
        module: A transformer; nothing is done for one that has no contexts.
        listener: It is told of the context that the module is in at once.

    Returns:
        Whether that context may be one of another thread, and so is good for the call
        in progress alone.
    """
    if not isinstance(module, CacheMixin):
        return False
    registry: Any = HookRegistry.check_if_exists_or_initialize(module)
    ear = registry.get_hook(LISTENER)
    if ear is None:
        ear = _Ear()
        found = ear.contexts.heard.context = entered(module)
        several = threading.active_count() > 1
        ear.contexts.heard.guessed = found is not None and several
        registry.hooks[LISTENER] = ear
        # A hook that is removed gives its forward to the one behind it: ours is first.
        registry._hook_order.insert(0, LISTENER)
        registry._fn_refs.insert(0, ear.fn_ref)
    ear.listeners.add(listener)
    listener.hear(ear.contexts.heard.context)
    guessed: bool = ear.contexts.heard.guessed
    return guessed


def entered(module: nn.Module) -> StepContext | None:
    """The context that was entered before anybody listened.

    Without a stateful hook, diffusers keeps it nowhere but in the generator that waits
    for the end of the ``with``. If several threads are inside, it is the one that all
    of them have entered, or none.

    Args:
        module: A transformer.
    """
    if not isinstance(module, CacheMixin):
        return None
    found = {}
    code = inspect.unwrap(type(module).cache_context).__code__
    for item in gc.get_objects():
        # Asking some objects for their class, as isinstance does, runs code of theirs.
        if type(item) is not GeneratorType or item.gi_code is not code:
            continue
        given = inspect.getgeneratorlocals(item)
        waits = inspect.getgeneratorstate(item) == inspect.GEN_SUSPENDED
        if waits and given["self"] is module:
            context = StepContext(given["name"], **given["kwargs"])
            found[repr(context)] = context
    return next(iter(found.values())) if len(found) == 1 else None
