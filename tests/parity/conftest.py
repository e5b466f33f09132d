"""One capture for each model and kind of call.

Tracing takes most of the time of these tests, and what they compare comes after it:
capture has tests of its own. A captured program is never changed, so that it can be
used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from graphcache import rewriting
from graphcache.analysis.binding import changing
from graphcache.capture import Capture
from graphcache.signature import Call


@pytest.fixture(autouse=True, scope="package")
def shared_captures() -> Iterator[None]:
    """Trace no model of the zoo twice for one kind of call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting, "capture", remembering(rewriting.capture))
        yield


def remembering(
    capture: Callable[[nn.Module, Call], Capture],
) -> Callable[[nn.Module, Call], Capture]:
    """The same function, which calls only once for equal arguments."""
    known: dict[Any, Capture] = {}

    def remembered(module: nn.Module, call: Call) -> Capture:
        key = (*_model(module), call.key, call.return_dict, *_given(call))
        if key not in known:
            known[key] = capture(module, call)
        return known[key]

    return remembered


def _model(module: nn.Module) -> tuple[Any, ...]:
    """All that the graph of a model of the zoo depends on: its weights are inputs."""
    config: Any = module.config
    weights = tuple((name, w.dtype) for name, w in module.named_parameters())
    parts = tuple((path, type(part)) for path, part in module.named_modules())
    return type(module), repr(sorted(config.items(), key=str)), weights, parts


def _given(call: Call) -> tuple[bytes, ...]:
    """Values of arguments that may be compiled in."""
    arguments = dict(zip(call.paths, call.tensors, strict=True))
    unknown = changing(arguments)
    return tuple(
        tensor.contiguous().view(-1).numpy().tobytes()
        for path, tensor in arguments.items()
        if path not in unknown
    )
