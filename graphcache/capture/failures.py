"""Failures: where in the model a call or its trace went wrong."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_FOREIGN = tuple(str(Path(file).parent) for file in (torch.__file__, __file__))


def describe(module: nn.Module, error: BaseException) -> str:
    """The module path and the source line at which an exception was raised, and what.

    The path is that of the innermost module call; the line is the innermost one that
    is neither torch's nor of this package.
    """
    path, line = None, None
    for frame, number in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            path = _path_of(module, owner, path)
        if not frame.f_code.co_filename.startswith(_FOREIGN) and path is not None:
            line = _show(frame, number)
    where = "" if path is None else f" at {path or 'the module itself'}"
    cause = str(error).strip().partition("\n")[0]
    return f"{where}{f' ({line})' if line else ''}: {type(error).__name__}: {cause}"


def _path_of(root: nn.Module, owner: nn.Module, known: str | None) -> str | None:
    return next((p for p, part in root.named_modules() if part is owner), known)


def _show(frame: FrameType, number: int) -> str:
    return f"{frame.f_code.co_filename}:{number}, in {frame.f_code.co_name}"
