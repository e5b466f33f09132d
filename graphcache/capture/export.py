"""Export: a module's forward over flat tensors, traced by `torch.export`.

The forward is traced as a function of plain tensors alone: the call's, and those that
quantised weights are made of. Whatever else it is given (numbers, containers, objects)
is built around them inside, so that no node of the trace stands for it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphcache.capture.casts import casts
from graphcache.capture.failures import describe
from graphcache.capture.kernels import PinnedKernels
from graphcache.capture.state import kept
from graphcache.capture.threads import alone
from graphcache.capture.twins import twins
from graphcache.capture.weights import QuantisedWeight, described, put_in, taken_out
from graphcache.capture.writes import Write, as_results, writes_between
from graphcache.errors import CaptureError
from graphcache.signature import Call, with_tensors

# How torch.export says that it does not know where a tensor comes from.
_LOST = "fake tensor in the exported program"
_TRACEABLE = (
    "torch.export must be able to trace the forward: no branching on what depends on "
    "the latents, the timestep or a weight, and no .item() of it"
)
Around = Callable[[Sequence[Tensor]], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Export:
    """A traced call.

    Attributes:
        program: It gives what the module returns, then the tensors that it wrote.
        output: The structure of what the module returns.
        writes: What the forward writes to the containers that it is given.
    """

    program: torch.export.ExportedProgram
    output: pytree.TreeSpec
    writes: tuple[Write, ...]


def export(
    module: nn.Module,
    call: Call,
    weights: Sequence[QuantisedWeight],
    around: Around,
) -> Export:
    """Trace a call into functional ATen.

    Its user inputs are the call's tensors, then those that its quantised weights are
    made of.

    Args:
        module: The module, or a shell of it; its forward and its parameters are
            replaced while it is traced.
        call: The call to trace, with ``return_dict=False``.
        weights: The module's quantised weights, which are replaced as well.
        around: What the forward runs in, given the tensors that it is traced with.

    Raises:
        CaptureError: If the forward cannot be traced.
    """
    # One object in two places would become one input, and a later call may differ.
    inner = [part for weight in weights for part in weight.parts.values()]
    tensors = tuple(_apart(tensor) for tensor in (*call.tensors, *inner))
    forward, count = module.forward, len(call.tensors)
    found: list[tuple[Write, ...]] = []

    def flat(*given_tensors: Tensor) -> Any:
        options = {} if call.return_dict is None else {"return_dict": False}
        traced = given_tensors[:count]
        values, given = (with_tensors(call, traced) for _ in range(2))
        with put_in(weights, given_tensors[count:]), around(traced), PinnedKernels():
            output = forward(**values, **options)
        writes, written = as_results(writes_between(given, values), traced)
        found.append(writes)
        return output, written

    module.__dict__["forward"] = flat
    try:
        with (
            torch.no_grad(),
            quiet(),
            twins(module),
            alone(),
            casts(module),
            taken_out(weights),
            kept(module, always=True),
        ):
            exported = torch.export.export(module, tensors, strict=False)
            functional = exported.run_decompositions({})
            output = functional.call_spec.out_spec.child(0)
            return Export(functional, output, found[-1])
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"{type(module).__name__} cannot be captured"
            f"{_cause(module, weights, error)}"
        ) from error
    finally:
        del module.__dict__["forward"]


def _cause(
    module: nn.Module, weights: Sequence[QuantisedWeight], error: Exception
) -> str:
    if _LOST in str(error):
        return (
            ": a tensor that the forward makes comes from no operator of torch "
            "(as_subclass, copy.copy, a function of C++), and a trace cannot follow "
            "it: clone() it, or make it by an operator"
        )
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    advice = described(weights, frames) or _TRACEABLE
    return f"{describe(module, error)}. {advice}."


def _apart(tensor: Tensor) -> Tensor:
    """A tensor of its own over the same values."""
    # Versions of inference tensors are not counted, and the trace counts on them.
    return tensor.clone() if tensor.is_inference() else tensor.detach()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch prints of a trace: our errors say what went wrong.

    Messages that `TORCH_LOGS` asks for are below a warning, and are kept.
    """
    handlers = _handlers()
    printed, graph = io.StringIO(), None
    for handler in handlers:
        handler.addFilter(_is_wanted)
    try:
        with contextlib.redirect_stderr(printed), warnings.catch_warnings():
            # torch's own deprecations inside export are not the user's business.
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        graph = getattr(error, "partial_fx_graph", None)
        raise
    finally:
        for handler in handlers:
            handler.removeFilter(_is_wanted)
        text = printed.getvalue()
        sys.stderr.write(text if graph is None else text.replace(f"{graph}\n", ""))


def _handlers() -> set[logging.Handler]:
    """Where torch's loggers write to: many have handlers of their own."""
    known = logging.root.manager.loggerDict
    loggers = (known[name] for name in known if name.partition(".")[0] == "torch")
    return {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
    }


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING
