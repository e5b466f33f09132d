"""Captures of small modules, and what their programs give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphcache.capture import Capture, capture
from graphcache.program import InputKind
from graphcache.signature import Call, CallSignature


def call_of(module: nn.Module, inputs: Mapping[str, Any]) -> Call:
    """One call of a module."""
    return CallSignature(module.forward).bind((), dict(inputs))


def captured(module: nn.Module, inputs: Mapping[str, Any]) -> Capture:
    """The capture of one call."""
    return capture(module.eval(), call_of(module, inputs))


def run(found: Capture, module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """What the program gives for a call."""
    call = call_of(module, inputs)
    arguments = dict(zip(call.paths, call.tensors, strict=True))
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    values = {
        InputKind.ARGUMENT: arguments,
        InputKind.WEIGHT: weights,
        InputKind.CONSTANT: found.program.constants,
    }
    bound = [values[entry.kind][entry.target] for entry in found.program.inputs]
    with torch.no_grad():
        results = torch.fx.Interpreter(found.program.module).run(*bound)
    return found.output.fill(results)


def equal(left: Any, right: Any) -> bool:
    """Whether two outputs have one structure and the same values."""
    ours, theirs = pytree.tree_flatten(left), pytree.tree_flatten(right)
    return ours[1] == theirs[1] and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(ours[0], theirs[0], strict=True)
    )
