"""Branches: the two sides of a gate as graph modules over its operands and buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphcache.passes.tracing import predicting, trace
from graphcache.program import (
    Gate,
    TensorType,
    fake_value,
    output_values,
    placeholders,
)


def inline(graph: fx.Graph, into: fx.Graph, operands: Sequence[fx.Node]) -> list[Any]:
    """Copy a graph's body into another, its placeholders bound to `operands`."""
    values = dict(zip(placeholders(graph), operands, strict=True))
    for node in graph.nodes:
        if node.op not in ("placeholder", "output"):
            values[node] = into.node_copy(node, values.__getitem__)
            values[node].meta = dict(node.meta)
    bound = [
        values[value] if isinstance(value, fx.Node) else value
        for value in output_values(graph)
    ]
    return bound


def branch(operands: Sequence[fx.Node], buffers: Sequence[fx.Node]) -> fx.Graph:
    """An empty branch: placeholders for its operands and buffers, named as they are."""
    graph = fx.Graph()
    for node in (*operands, *buffers):
        graph.placeholder(node.name).meta = dict(node.meta)
    return graph


def finish(
    graph: fx.Graph, values: Sequence[Any], *owners: torch.nn.Module
) -> fx.GraphModule:
    """Close a branch over its results and new buffers.

    Args:
        graph: The branch so far.
        values: What it returns.
        *owners: Hold the branches of the gates inside it, and functions.
    """
    graph.output(tuple(values))
    held = {name: part for owner in owners for name, part in owner._modules.items()}
    root = torch.nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            root.add_module(node.target, held[node.target])
    return fx.GraphModule(root, graph, class_name="Branch")


class Sides:
    """Builds both branches of one gate.

    Args:
        gate: The plan of the gate.
        operands: What the branches read.
        buffers: The gate's own buffers, then those of gates inside it.
        streams: Per result, the value of its stream before the region, or None.
        scalars: The predictor's scalars.
        owner: Holds the branches of gates inside it.
        foreign: Storages that the caller may write to after the step.
    """

    def __init__(
        self,
        gate: Gate,
        operands: Sequence[fx.Node],
        buffers: Sequence[fx.Node],
        streams: Sequence[fx.Node | None],
        scalars: Sequence[fx.Node],
        owner: torch.nn.Module,
        foreign: Collection[int],
    ) -> None:
        self.gate = gate
        self.operands = operands
        self.buffers = buffers
        self.streams = streams
        self.scalars = scalars
        self.owner = owner
        self.foreign = foreign
        self.own = len(gate.buffers)

    def _start(self) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        graph = branch(self.operands, self.buffers)
        outer = (*self.operands, *self.buffers)
        return graph, dict(zip(outer, placeholders(graph), strict=True))

    def _context(
        self, values: dict[fx.Node, fx.Node]
    ) -> tuple[list[list[Tensor | None]], list[fx.Node]]:
        """Fakes of streams, own buffers and scalars, and the nodes that hold them."""
        groups = (self.streams, self.buffers[: self.own], self.scalars)
        fakes = [[None if n is None else fake_value(n) for n in g] for g in groups]
        nodes = [values[node] for g in groups for node in g if node is not None]
        return fakes, nodes

    def compute(
        self,
        nodes: Sequence[fx.Node],
        results: Sequence[fx.Node],
        carried: Sequence[fx.Node],
    ) -> fx.GraphModule:
        """The region, then the predictor's update.

        Args:
            nodes: The region, in graph order.
            results: What it gives to the rest of the program.
            carried: The new buffers of the gates inside it.
        """
        graph, values = self._start()
        for node in nodes:
            values[node] = graph.node_copy(node, values.__getitem__)
            values[node].meta = dict(node.meta)
        outputs = [values[node] for node in results]
        fakes, context = self._context(values)
        given = [fake_value(node) for node in results]
        update = trace(self.gate.predictor.update, given, *fakes)
        held = inline(update, graph, [*outputs, *context])
        kept = self._laid_out(graph, compact(graph, held, self.foreign))
        inner = [values[node] for node in carried]
        return finish(graph, [*outputs, *kept, *inner], self.owner)

    def reuse(self) -> fx.GraphModule:
        """The predictor in the region's place; gates inside it keep their buffers."""
        graph, values = self._start()
        fakes, context = self._context(values)
        predicted = trace(predicting(self.gate.predictor), *fakes)
        given = inline(predicted, graph, context)
        given[-self.own :] = self._laid_out(graph, given[-self.own :])
        inner = [values[node] for node in self.buffers[self.own :]]
        return finish(graph, [*given, *inner], self.owner)

    def _laid_out(self, graph: fx.Graph, held: list[Any]) -> list[Any]:
        """Values as their buffers are laid out, where those are dense."""
        pairs = zip(held, self.buffers[: self.own], strict=True)
        return [laid_out(graph, value, buffer) for value, buffer in pairs]


def laid_out(graph: fx.Graph, value: fx.Node, buffer: fx.Node) -> fx.Node:
    """A dense copy of a value, if its buffer is dense and the value is not."""
    wanted = fake_value(buffer)
    if same_layout(fake_value(value), wanted) or not wanted.is_contiguous():
        return value
    return _clone(graph, value)


def same_layout(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one shape lie in memory alike."""
    extents = zip(left.shape, left.stride(), right.stride(), strict=True)
    return all(size <= 1 or a == b for size, a, b in extents)


def pinned(values: Sequence[Tensor]) -> list[bool]:
    """Which tensors, if kept, would keep alive more memory than they show."""
    shown: Counter[int] = Counter()
    for value in {id(value): value for value in values}.values():
        shown[storage_key(value)] += TensorType.of(value).bytes
    return [
        shown[storage_key(value)] < value.untyped_storage().nbytes() for value in values
    ]


def storage_key(value: Tensor) -> int:
    """Identity of a tensor's storage."""
    return int(value.untyped_storage()._cdata)


def compact(graph: fx.Graph, held: list[Any], foreign: Collection[int]) -> list[Any]:
    """Copy values that are the caller's, or whose storage holds more than they show.

    Args:
        graph: Where copies are made.
        held: What is to be kept.
        foreign: Storages that belong to the caller, who may write to them after the
            step.
    """
    values = [fake_value(value) for value in held]
    copies = [
        large or storage_key(value) in foreign
        for value, large in zip(values, pinned(values), strict=True)
    ]
    return [
        _clone(graph, value) if copied else value
        for value, copied in zip(held, copies, strict=True)
    ]


def _clone(graph: fx.Graph, value: fx.Node) -> fx.Node:
    node = graph.call_function(
        torch.ops.aten.clone.default,
        (value,),
        {"memory_format": torch.contiguous_format},
    )
    node.meta["val"] = buffer_like(fake_value(value), contiguous=True)
    return node


def buffer_like(value: Tensor, contiguous: bool) -> Tensor:
    """A new fake of the same type, dense or with the strides of `value`."""
    with value.fake_mode:  # type: ignore[attr-defined]
        if contiguous:
            return torch.empty(value.shape, dtype=value.dtype, device=value.device)
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
