"""Eager: one call of the module itself, ahead of its trace.

Many modules keep what their first call works out: rotary frequencies, masks, tables.
That must be kept of tensors, not of the fakes that a trace is made of. The call also
shows what the module returns, and fails where the inputs do not fit it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from graphcache.capture.failures import describe
from graphcache.capture.outputs import OutputTree, tree_of
from graphcache.capture.writes import Write, as_results, writes_between
from graphcache.errors import CaptureError
from graphcache.signature import Call, with_tensors


def call_eager(module: nn.Module, call: Call) -> tuple[OutputTree, tuple[Write, ...]]:
    """Call the module; returns the structure of what it gives, and what it wrote.

    Args:
        module: The module, in eval mode.
        call: What to call it with. Its tensors are copied, so that the caller's stay as
            they are whatever the forward does.

    Raises:
        CaptureError: If the call fails, writes to its tensors, or puts into a container
            what a program cannot give.
    """
    tensors = [tensor.clone() for tensor in call.tensors]
    counts = [version(tensor) for tensor in tensors]
    values = with_tensors(call, tensors)
    given = with_tensors(call, tensors)
    # The richer of the two outputs; the trace shows the other one.
    wanted = {} if call.return_dict is None else {"return_dict": True}
    try:
        output = module(**values, **wanted)
    except Exception as error:
        raise CaptureError(
            f"{type(module).__name__} fails on this call{describe(module, error)}"
        ) from error
    written = zip(call.paths, tensors, counts, strict=True)
    refuse_writes([path for path, t, count in written if version(t) != count])
    writes, _ = as_results(writes_between(given, values), tensors)
    return tree_of(output), writes


def refuse_writes(names: list[str]) -> None:
    """Raise if the forward wrote to anything.

    Raises:
        CaptureError: Naming it.
    """
    if names:
        raise CaptureError(
            f"the forward writes to {', '.join(sorted(names))}: a program is "
            "functional, so a module that changes its own state or its arguments "
            "cannot be captured"
        )


def version(tensor: Tensor) -> int:
    """How often a tensor has been written to; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put the module's buffers back if what happens inside fails.

    A tensor that is an attribute of the module, and no parameter, is like a buffer.

    Raises:
        CaptureError: If a buffer was written to in place.
    """
    held = [
        (path, table, name, value, value.clone(), version(value))
        for path, part in module.named_modules()
        for table in (part._buffers, part.__dict__)
        for name, value in table.items()
        if type(value) is Tensor
    ]
    try:
        yield
        refuse_writes(
            [
                f"{path}.{name}".lstrip(".")
                for path, _, name, value, _, count in held
                if version(value) != count
            ]
        )
    except BaseException:
        with torch.no_grad():
            for _, owner, name, value, copied, count in held:
                owner[name] = value
                # A write through .data is not counted.
                if version(value) != count or not torch.equal(value, copied):
                    value.copy_(copied)
        raise
