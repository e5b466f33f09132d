"""Requests: whose streams a call finds.

A request is one generation after the other of somebody: its streams, steps and contexts
are its own. Without a word, every thread is a request, and so is every task of asyncio;
`request` names others. What a request holds is freed with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor

from graphcache.errors import GraphCacheError
from graphcache.runtime.clock import Clock


class _Held:
    """What the scopes of one name share: the clocks of its request, by module.

    Attributes:
        name: Of the request.
        clocks: By the module's own `Requests`.
        scopes: How many scopes are open.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.clocks: dict[Requests, Clock] = {}
        self.scopes = 0


class Request:
    """A scope whose calls belong to one request; `request` makes it.

    It can be entered once. Tasks and threads that copy the context, as asyncio and
    `asyncio.to_thread` do, are in it as well.
    """

    def __init__(self, name: Hashable | None, only: Requests | None) -> None:
        self.name = name
        self.only = only
        self.open = False
        self.outer: Request | None = None
        self._frame = 0
        self._thread = 0
        self._leaks = False
        self._held: _Held | None = None

    def __enter__(self) -> Request:
        """Begin, or join the scopes of the same name that are open."""
        if self._held is not None:
            raise GraphCacheError(
                f"request {self.name!r} was entered already: ask for another one, "
                "compiled.request(...), each time"
            )
        self._held = _join(self.name, self.only)
        frame = _entering(sys._getframe(1))
        self._frame, self._thread = id(frame), threading.get_ident()
        self._leaks = bool(frame.f_code.co_flags & _GENERATORS)
        self.open = True
        self.outer = _CURRENT.get()
        _CURRENT.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the request, unless other scopes of its name are open."""
        self.open = False
        # A scope of a generator may end while a later one is open.
        current = _CURRENT.get()
        while current is not None and not current.open:
            current = current.outer
        _CURRENT.set(current)
        held = self._held
        assert held is not None
        for clock in _leave(self.name, self.only, held):
            clock.reset(early=kind is not None)

    @property
    def leaks(self) -> bool:
        """Whether calls outside of the block may see the scope.

        Generators do not keep the context to themselves: what one has entered is there
        for its caller as well, until it goes on.
        """
        return self._leaks and self._thread == threading.get_ident()

    def is_of(self, frame: FrameType) -> bool:
        """Whether it was entered in a frame."""
        return self._frame == id(frame)

    def clock_of(self, requests: Requests) -> Clock:
        """The request's clock of one module."""
        assert self._held is not None
        clocks = self._held.clocks
        clock = clocks.get(requests)
        if clock is None:
            made = requests.make(self._held.name)
            clock = clocks.setdefault(requests, made)
        return clock


_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_CURRENT: ContextVar[Request | None] = ContextVar("graphcache_request", default=None)
_LOCK = threading.Lock()
_open: dict[tuple[Hashable, int], _Held] = {}


def request(name: Hashable | None = None, *, only: Requests | None = None) -> Request:
    """A scope whose calls belong to one request, in whatever thread they are made.

    Args:
        name: Names the request, as ``StepRecord.request`` does. Scopes of one name that
            are open at once are one request, which ends with the last of them. None is
            a request of its own.
        only: Whose calls; None is those of every compiled module.
    """
    return Request(name, only)


def _entering(frame: FrameType) -> FrameType:
    """The frame with the block: not that of a context manager around the scope."""
    while frame.f_back is not None:
        driver = frame.f_back
        managed = frame.f_code.co_flags & _GENERATORS and _is_contextlib(driver)
        if not managed and not _is_contextlib(frame):
            break
        frame = driver
    return frame


def _is_contextlib(frame: FrameType) -> bool:
    return frame.f_code.co_filename == contextlib.__file__


def _join(name: Hashable | None, only: Requests | None) -> _Held:
    with _LOCK:
        if name is None:
            held = _Held("request")
        else:
            held = _open.setdefault((name, id(only)), _Held(str(name)))
        held.scopes += 1
        return held


def _leave(name: Hashable | None, only: Requests | None, held: _Held) -> list[Clock]:
    """The clocks of a request that has ended."""
    with _LOCK:
        held.scopes -= 1
        if held.scopes:
            return []
        if name is not None:
            del _open[name, id(only)]
        clocks = [*held.clocks.values()]
        held.clocks.clear()
    return clocks


class _Home(threading.local):
    """What belongs to the calling thread, and is freed with it."""

    def __init__(self) -> None:
        self.clock: Clock | None = None
        self.tasks: WeakKeyDictionary[Any, Clock] = WeakKeyDictionary()


class Requests:
    """The requests of one module.

    Args:
        first: A clock that shares its sources with those of all requests.
    """

    def __init__(self, first: Clock) -> None:
        self._first = first
        self._home = _Home()
        self._lock = threading.Lock()
        self._clocks: WeakSet[Clock] = WeakSet()
        first.sources.contested = self.contested
        first.sources.live = self._live

    def current(self) -> Clock:
        """The clock of the request that the caller is in."""
        scope = _CURRENT.get()
        if scope is not None:
            scope = self._scope(scope)
            if scope is not None:
                return scope.clock_of(self)
        if _running_loop() is not None:
            return self._of_task()
        clock = self._home.clock
        if clock is None:
            clock = self.make(threading.current_thread().name)
            self._home.clock = clock
        return clock

    def make(self, name: str) -> Clock:
        """A clock of a new request."""
        clock = self._first.twin(name)
        if _CURRENT.get() is not None and self._home.clock is not None:
            # A request that begins inside a context is inside it.
            clock.context = self._home.clock.context
        with self._lock:
            self._clocks.add(clock)
        return clock

    def __iter__(self) -> Iterator[Clock]:
        """The clocks of all requests that there are."""
        with self._lock:
            clocks = [*self._clocks]
        return iter(clocks)

    def contested(self) -> bool:
        """Whether more than one request is in the middle of a generation."""
        if len(self._clocks) < 2:
            return False
        return sum(bool(clock.streams) for clock in self) > 1

    def _live(self) -> list[Tensor]:
        """The buffers of all requests."""
        return [tensor for clock in self for tensor in clock.held()]

    def _of_task(self) -> Clock:
        task = asyncio.current_task()
        tasks = self._home.tasks
        key = task if task is not None else asyncio.get_running_loop()
        clock = tasks.get(key)
        if clock is None:
            name = "event loop" if task is None else task.get_name()
            clock = tasks[key] = self.make(name)
        return clock

    def _scope(self, scope: Request) -> Request | None:
        """The innermost open scope that holds for this module.

        Where several are open, it is the one that was entered by the innermost of the
        calling frames.
        """
        found = [
            known
            for known in _outwards(scope)
            if known.open and known.only in (None, self)
        ]
        if len(found) == 1 and not found[0].leaks:
            return found[0]
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and found:
            for known in found:
                if known.is_of(frame):
                    return known
            frame = frame.f_back
        return next((known for known in found if not known.leaks), None)


# Asking for the running loop raises where there is none, which takes longer.
_running_loop = asyncio._get_running_loop


def _outwards(scope: Request) -> Iterator[Request]:
    """A scope and those around it, the innermost first."""
    current: Request | None = scope
    while current is not None:
        yield current
        current = current.outer
