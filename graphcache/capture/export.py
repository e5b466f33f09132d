"""Export: a module's forward over flat tensors, traced by `torch.export`.

The forward is traced as a function of the call's tensors alone. Whatever else it is
given (numbers, containers, objects) is built around them inside, so that no node of
the trace stands for it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.capture.casts import casts
from graphcache.capture.failures import describe
from graphcache.capture.twins import twins
from graphcache.errors import CaptureError
from graphcache.signature import Call, with_tensors

Around = Callable[[Sequence[Tensor]], contextlib.AbstractContextManager[None]]


def export(
    module: nn.Module, call: Call, around: Around
) -> torch.export.ExportedProgram:
    """Trace a call into functional ATen whose user inputs are the call's tensors.

    Args:
        module: The module; its forward is replaced while it is traced.
        call: The call to trace, with ``return_dict=False``.
        around: What the forward runs in, given the tensors that it is traced with.

    Raises:
        CaptureError: If the forward cannot be traced.
    """
    # One object in two places would become one input, and a later call may differ.
    tensors = tuple(_apart(tensor) for tensor in call.tensors)
    forward = module.forward

    def flat(*traced: Tensor) -> Any:
        options = {} if call.return_dict is None else {"return_dict": False}
        with around(traced):
            return forward(**with_tensors(call, traced), **options)

    module.__dict__["forward"] = flat
    try:
        with torch.no_grad(), quiet(), twins(module), casts(module):
            exported = torch.export.export(module, tensors, strict=False)
            functional: torch.export.ExportedProgram = exported.run_decompositions({})
            return functional
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"{type(module).__name__} cannot be captured{describe(module, error)}. "
            "torch.export must be able to trace the forward: no branching on what "
            "depends on the latents, the timestep or a weight, and no .item() of it."
        ) from error
    finally:
        del module.__dict__["forward"]


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
