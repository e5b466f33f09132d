"""Threads: what torch patches for a trace, patched for the tracing thread alone.

While torch traces, `torch.nn.Module` has another ``__call__`` and another
``__getattr__``, and a flag says that fx is at work. All three are seen by every thread
of the process: a module that another thread runs meanwhile would be taken for a part of
the trace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import nn
from torch.fx import _symbolic_trace

_FLAG = "_is_fx_tracing_flag"


class _Here:
    """True in one thread, false in the others."""

    def __init__(self) -> None:
        self.thread = get_ident()

    def __bool__(self) -> bool:
        return get_ident() == self.thread


@contextmanager
def alone() -> Iterator[None]:
    """Keep other threads out of the traces that this one makes inside."""
    here = _Here()
    patcher: Any = _symbolic_trace._Patcher
    plain = patcher.patch_method

    @functools.wraps(plain)
    def patch_method(
        self: Any, kind: type, name: str, new: Callable[..., Any], *args: Any, **kw: Any
    ) -> None:
        if kind is nn.Module and here:
            new = _only(here, new, getattr(kind, name))
            if getattr(_symbolic_trace, _FLAG, None) is True:
                # The tracer, which has set it, puts it back.
                setattr(_symbolic_trace, _FLAG, here)
        plain(self, kind, name, new, *args, **kw)

    patcher.patch_method = patch_method
    try:
        yield
    finally:
        patcher.patch_method = plain


def _only(
    here: _Here, new: Callable[..., Any], old: Callable[..., Any]
) -> Callable[..., Any]:
    """`new` for the thread that traces, and `old` for the others."""

    @functools.wraps(new)
    def method(*args: Any, **kwargs: Any) -> Any:
        return (new if here else old)(*args, **kwargs)

    return method
