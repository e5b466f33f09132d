"""Captures: what was compiled of a module, by the state that the module was in.

When an adapter is switched, a scale changed or a processor replaced, the loops that
were compiled before are put aside. If the state comes back, so do they.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphcache.runtime.compiling import CompiledLoop
from graphcache.runtime.loops import Loops
from graphcache.runtime.segment import Segment, segments_of
from graphcache.runtime.state import ModuleState
from graphcache.runtime.weights import Table
from graphcache.signature import Call

MOST_STATES = 8


class Captures:
    """The loops of the states that a module was in lately.

    Args:
        state: The state that the module is in.
    """

    def __init__(self, state: ModuleState) -> None:
        self._entries: list[tuple[ModuleState, Loops[CompiledLoop]]] = [
            (state, Loops())
        ]

    def __iter__(self) -> Iterator[CompiledLoop]:
        """What was compiled in the present state, the oldest first."""
        return iter(self.current)

    @property
    def current(self) -> Loops[CompiledLoop]:
        """The loops of the present state."""
        return self._entries[-1][1]

    def find(self, call: Call) -> CompiledLoop | None:
        """The loop of the present state that is good for a call."""
        return self.current.find(call)

    def add(self, call: Call, loop: CompiledLoop, state: ModuleState) -> None:
        """Add a loop that was compiled now.

        Args:
            call: The call that it was compiled for.
            loop: What was compiled.
            state: The state that capture has left the module in. Many modules keep what
                their first call works out, which is no change of them.
        """
        self.current.add(call, loop)
        self._entries[-1] = state, self.current

    def enter(self, state: ModuleState, weights: Table) -> None:
        """Make a state the present one; the one longest left goes if there are many.

        Args:
            state: The state that the module is in now.
            weights: Its weights by qualified name.
        """
        left = self.current
        known = [entry for entry in self._entries if entry[0].same(state)]
        others = [entry for entry in self._entries if not entry[0].same(state)]
        loops = known[-1][1] if known else Loops[CompiledLoop]()
        self._entries = [*others[1 - MOST_STATES :], (state, loops)]
        if loops is not left:
            for loop in left:
                _release(loop)
        for loop in loops:
            _bind(loop, weights)

    def clear(self) -> None:
        """Forget all loops of all states; the present state stays."""
        self._entries = [(self._entries[-1][0], Loops())]


def _bind(loop: CompiledLoop, weights: Table) -> None:
    for segment in _segments(loop):
        segment.weights.bind(weights)


def _release(loop: CompiledLoop) -> None:
    for segment in _segments(loop):
        segment.weights.release()


def _segments(loop: CompiledLoop) -> Iterator[Segment]:
    for route in loop.routes.values():
        yield from segments_of(route)
    for hoisted in loop.hoisted.values():
        yield from segments_of(hoisted.route)
