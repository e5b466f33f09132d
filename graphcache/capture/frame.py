"""Frames: which call of which module a graph of Dynamo's is.

Dynamo compiles a frame: the forward itself, a decorator around it, or the module's
``__call__``. Its locals say what was called with what.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import GetItemSource, LocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import Source

from graphcache.errors import BackendError
from graphcache.signature import Call, CallSignature


@dataclass(frozen=True)
class TracedFrame:
    """A frame that Dynamo has traced to its end.

    Attributes:
        module: The module that was called.
        source: Where Dynamo finds the module.
        call: What it was called with.
    """

    module: nn.Module
    source: Source
    call: Call

    @staticmethod
    def current() -> TracedFrame:
        """The frame whose graph Dynamo is just handing to its backend.

        Raises:
            BackendError: If it is not a whole call of a module.
            CaptureError: If an argument cannot be bound.
        """
        translator: Any = InstructionTranslator.current_tx()
        output = translator.output
        _refuse_break(output.compile_subgraph_reason)
        code = output.root_tx.f_code
        args, kwargs = arguments_of(code, output.local_scope)
        if not args or not isinstance(args[0], nn.Module):
            raise BackendError(
                f"torch.compile was given {code.co_name}, which is no call of a "
                "module: compile the transformer, not what calls it, and not one of "
                "graphcache.compile, which is compiled already"
            )
        module: nn.Module = args[0]
        signature = CallSignature(module.forward)
        # Dynamo's inputs are told by the identity of the tensors.
        call = signature.bind(tuple(args[1:]), kwargs, resolve=False)
        source: Source = LocalSource(code.co_varnames[0], is_input=True)
        if not code.co_argcount:
            source = GetItemSource(source, 0)
        return TracedFrame(module, source, call)

    def pin(self) -> None:
        """Have Dynamo trace every other module anew, be it one of the same layers.

        Weights are inputs to Dynamo, so that one graph would serve them all, and the
        cache of one would be read by another.
        """
        install_guard(self.source.make_guard(GuardBuilder.ID_MATCH))


def name_of(source: Source) -> str:
    """What Dynamo calls a place, such as ``L['self']._buffers['table']``."""
    # A method in some versions of torch, and an attribute in others.
    name: Any = source.name
    return str(name() if callable(name) else name)


def arguments_of(
    code: CodeType, scope: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """What a function was called with, told by its locals.

    Args:
        code: The function's code.
        scope: Its locals, before any is changed.
    """
    named = code.co_argcount
    only = named + code.co_kwonlyargcount
    args = [scope[name] for name in code.co_varnames[:named]]
    kwargs = {name: scope[name] for name in code.co_varnames[named:only]}
    rest = iter(code.co_varnames[only:])
    if code.co_flags & inspect.CO_VARARGS:
        args.extend(scope[next(rest)])
    if code.co_flags & inspect.CO_VARKEYWORDS:
        kwargs |= scope[next(rest)]
    return args, kwargs


def _refuse_break(reason: Any) -> None:
    if not reason.graph_break:
        return
    where = "".join(f" at {f.filename}:{f.lineno}" for f in reason.user_stack[-1:])
    cause = str(reason.reason).strip().partition("\n")[0]
    raise BackendError(
        f"Dynamo broke the graph{where}: {cause}. A step has to be one graph: pass "
        "fullgraph=True for all that Dynamo says of the break, or use "
        "graphcache.compile, which traces without Dynamo"
    )
