"""Simplifications on the way to an engine: exact, and only where they apply."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from graphcache.tensorrt.simplify import drop_layouts, fold_constants, join_slices

aten = torch.ops.aten
Function = Callable[[Tensor, Tensor], Tensor]


def traced(function: Function, *inputs: Tensor) -> fx.GraphModule:
    """A function as a graph with types."""
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in inputs]
        module = make_fx(torch.func.functionalize(function))(*fakes)
    return module


def targets(module: fx.GraphModule) -> set[object]:
    """The operators of a graph."""
    return {node.target for node in module.graph.nodes if node.op == "call_function"}


def simplified(
    simplify: Callable[[fx.Graph], None], function: Function, *inputs: Tensor
) -> fx.GraphModule:
    """The graph of a function after a simplification that changes no number."""
    module = traced(function, *inputs)
    # What is written is copied into place first.
    drop_layouts(module.graph)
    simplify(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    assert torch.equal(module(*inputs), function(*inputs))
    return module


def interleaved(x: Tensor, y: Tensor) -> Tensor:
    """What rotary embeddings do."""
    out = torch.zeros(2, 6)
    out[..., 1::2] = y
    out[..., 0::2] = x + 1
    return out


def thirds(x: Tensor, y: Tensor) -> Tensor:
    """Along the first dimension, in three, and one of them twice."""
    out = torch.zeros(6, 3)
    out[0::3], out[1::3], out[2::3] = x, y, x * y
    out[1::3] = x - y
    return out


@pytest.mark.parametrize("function", [interleaved, thirds])
def test_what_is_written_in_turn_is_joined(function: Function) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    module = simplified(join_slices, function, x, y)
    assert aten.slice_scatter.default not in targets(module)
    assert aten.stack.default in targets(module)


def half(x: Tensor, y: Tensor) -> Tensor:
    """Odd elements stay what they were."""
    out = torch.ones(2, 6)
    out[..., 0::2] = x * y
    return out


def uneven(x: Tensor, y: Tensor) -> Tensor:
    """One more element at even places than at odd ones."""
    out = torch.ones(2, 5)
    out[..., 0::2] = x
    out[..., 1::2] = y[:, :2]
    return out


def across(x: Tensor, y: Tensor) -> Tensor:
    """Along two dimensions."""
    out = torch.ones(4, 6)
    out[0::2, :3] = x
    out[:2, 1::2] = y
    return out


@pytest.mark.parametrize("function", [half, uneven, across])
def test_what_is_not_all_written_stays(function: Function) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    module = simplified(join_slices, function, x, y)
    assert aten.slice_scatter.default in targets(module)
    assert aten.stack.default not in targets(module)


def test_copies_are_what_they_copy() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        place = x.new_empty_strided((2, 3), (1, 2))
        wide = aten.copy(torch.empty(2, 2, 3, dtype=torch.float64), y)
        return aten.copy(place, x) + wide.float() + aten.fill(y, x[0, 0])

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    module = simplified(drop_layouts, function, x, y)
    dropped = {aten.copy.default, aten.fill.Tensor, aten.new_empty_strided.default}
    assert not dropped & targets(module)


def test_constants_are_worked_out_as_they_are_written() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        third = torch.arange(3, dtype=torch.float64) / 3
        return x * third.sin().float() + y

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    module = traced(function, x, y)
    fold_constants(module)
    module.recompile()
    assert targets(module) == {aten.mul.Tensor, aten.add.Tensor}
    (constant,) = module.buffers()
    assert torch.equal(
        constant, (torch.arange(3.0, dtype=torch.float64) / 3).sin().float()
    )
    assert torch.equal(module(x, y), function(x, y))
