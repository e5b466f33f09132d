"""Modes: what torch lets listen to every call, stepped out of for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch._dispatch.python import no_python_dispatcher
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

# Untyped, and torch's own ways to the stack of modes.
_modes: Callable[[], list[TorchFunctionMode]]
_modes = torch.overrides._get_current_function_mode_stack
_pop: Callable[[], TorchFunctionMode] = torch.overrides._pop_mode
_push: Callable[[TorchFunctionMode], None] = torch.overrides._push_mode


@contextmanager
def untraced() -> Iterator[None]:
    """Run what is inside on real tensors, in the midst of a trace."""
    with (
        torch._C.DisableTorchFunction(),
        _disable_current_modes(),
        no_python_dispatcher(),
    ):
        yield


@contextmanager
def lifted(mode: TorchFunctionMode) -> Iterator[None]:
    """Without a mode that is on the stack of modes, if it is."""
    above: list[TorchFunctionMode] = []
    if mode in _modes():
        while not above or above[-1] is not mode:
            above.append(_pop())
    for other in reversed(above[:-1]):
        _push(other)
    try:
        yield
    finally:
        for _ in above[:-1]:
            _pop()
        for other in reversed(above):
            _push(other)
