"""insert-gates: each tagged region becomes one `gate` op.

The compute branch is the region followed by the predictor's `update`, the reuse branch
its `predict`. Decisions and buffers become inputs of the program, the buffers' new
values its outputs: from here on the cache is data flow.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from graphcache.ops import gate as gate_op
from graphcache.passes.manager import PassResult
from graphcache.program import (
    Gate,
    Input,
    InputKind,
    Program,
    Region,
    Stage,
    TensorType,
    fake_value,
    output_node,
    output_values,
    placeholders,
)


def insert_input(graph: fx.Graph, name: str, value: Any) -> fx.Node:
    """Append a placeholder after the others."""
    with graph.inserting_after(placeholders(graph)[-1]):
        node = graph.placeholder(name)
    node.meta["val"] = value
    return node


def trace(function: Callable[..., Any], *values: Sequence[Tensor]) -> fx.Graph:
    """The graph of a function of lists of fake tensors, flat in and out."""
    counts = [len(group) for group in values]

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        groups, start = [], 0
        for count in counts:
            groups.append(tensors[start : start + count])
            start += count
        return tuple(function(*groups))

    traced = make_fx(flat)(*[value for group in values for value in group])
    return traced.graph


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


def finish(graph: fx.Graph, values: Sequence[Any]) -> fx.GraphModule:
    """Close a branch over its results and new buffers."""
    graph.output(tuple(values))
    return fx.GraphModule(torch.nn.Module(), graph, class_name="Branch")


def compute_branch(
    nodes: Sequence[fx.Node],
    operands: Sequence[fx.Node],
    results: Sequence[fx.Node],
    buffers: Sequence[fx.Node],
    gate: Gate,
) -> fx.GraphModule:
    """The region, then the predictor's update."""
    graph = branch(operands, buffers)
    inner = placeholders(graph)
    values = dict(zip((*operands, *buffers), inner, strict=True))
    for node in nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
        values[node].meta = dict(node.meta)
    outputs = [values[node] for node in results]
    fakes = [[fake_value(node) for node in group] for group in (results, buffers)]
    update = trace(gate.predictor.update, *fakes)
    held = inline(update, graph, [*outputs, *inner[len(operands) :]])
    return finish(graph, [*outputs, *compact(graph, held)])


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


def compact(graph: fx.Graph, held: list[Any]) -> list[Any]:
    """Copy values that show an operand, or whose storage holds more than they do.

    An operand belongs to the caller, who may write to it after the step.
    """
    values = [fake_value(value) for value in held]
    foreign = {
        storage_key(fake_value(node))
        for node in placeholders(graph)
        if isinstance(fake_value(node), Tensor)
    }
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


def reuse_branch(
    operands: Sequence[fx.Node], buffers: Sequence[fx.Node], gate: Gate
) -> fx.GraphModule:
    """The predictor in the region's place."""
    graph = branch(operands, buffers)
    inner = placeholders(graph)

    def predict(held: Sequence[Tensor]) -> list[Tensor]:
        outputs, kept = gate.predictor.predict(held)
        return [*outputs, *kept]

    predicted = trace(predict, [fake_value(node) for node in buffers])
    return finish(graph, inline(predicted, graph, inner[len(operands) :]))


def first_reader(graph: fx.Graph, nodes: Sequence[fx.Node]) -> fx.Node:
    """The first node outside `nodes` that reads one of them."""
    inside = set(nodes)
    readers = {user for node in nodes for user in node.users} - inside
    found: fx.Node = next(node for node in graph.nodes if node in readers)
    return found


@dataclass
class _Rewriter:
    """Replaces the regions of one program, one gate at a time."""

    program: Program
    nodes: dict[str, fx.Node]
    inputs: list[Input]
    decisions: dict[str, fx.Node]
    stores: list[fx.Node]

    def add_decision(self, predicate: str) -> None:
        graph = self.program.graph
        node = insert_input(graph, f"decision_{predicate}", _fake_bool(graph))
        self.decisions[predicate] = node
        self.inputs.append(Input(node.name, InputKind.DECISION, predicate))

    def add_buffer(self, buffer: str, example: Tensor) -> fx.Node:
        name = "cache_" + buffer.replace(".", "_").replace("@", "_")
        node = insert_input(self.program.graph, name, example)
        self.inputs.append(Input(node.name, InputKind.BUFFER, buffer))
        return node

    def replace(self, gate: Gate, region: Region, number: int) -> None:
        nodes, operands, results = (
            [self.nodes[name] for name in names]
            for names in (region.nodes, region.operands, region.results)
        )
        held = gate.predictor.initial([fake_value(node) for node in results])
        buffers = [
            self.add_buffer(name, buffer_like(value, contiguous=copied))
            for name, value, copied in zip(
                gate.buffers, held, pinned(held), strict=True
            )
        ]
        compute = compute_branch(nodes, operands, results, buffers, gate)
        reuse = reuse_branch(operands, buffers, gate)
        anchor = first_reader(self.program.graph, nodes)
        with self.program.graph.inserting_before(anchor):
            values = self._insert(gate, number, (compute, reuse), operands, buffers)
        inside = set(nodes)
        for node, value in zip(results, values, strict=False):
            node.replace_all_uses_with(
                value, delete_user_cb=lambda user: user not in inside
            )
            # A later region may read this result: from now on it is the gate's.
            self.nodes[node.name] = value
        self.stores.extend(values[len(results) :])
        for node in reversed(nodes):
            self.program.graph.erase_node(node)

    def _insert(
        self,
        gate: Gate,
        number: int,
        branches: tuple[fx.GraphModule, fx.GraphModule],
        operands: list[fx.Node],
        buffers: list[fx.Node],
    ) -> list[fx.Node]:
        graph, module = self.program.graph, self.program.module
        names = [f"gate_{number}_compute", f"gate_{number}_reuse"]
        for name, child in zip(names, branches, strict=True):
            module.add_submodule(name, child)
        outputs = [fake_value(value) for value in output_values(branches[0].graph)]
        pair = [graph.get_attr(name) for name in names]
        node = graph.call_function(
            gate_op,
            (
                self.decisions[gate.predicate],
                *pair,
                tuple(operands),
                tuple(buffers),
            ),
            name=f"gate_{number}",
        )
        node.meta = {
            "val": tuple(outputs),
            "custom": {"region": gate.region, "predicate": gate.predicate},
        }
        values = []
        for index, value in enumerate(outputs):
            item = graph.call_function(operator.getitem, (node, index))
            item.meta["val"] = value
            values.append(item)
        return values


def _fake_bool(graph: fx.Graph) -> Tensor:
    """A fake ``bool[]`` on the CPU, of the mode that the graph's values live in."""
    mode = next(
        value.fake_mode
        for value in map(fake_value, graph.nodes)
        if hasattr(value, "fake_mode")
    )
    with mode:
        return torch.empty((), dtype=torch.bool, device="cpu")


@dataclass(frozen=True)
class InsertGates:
    """Turn every tagged region into a gate over explicit buffers."""

    name: ClassVar[str] = "insert-gates"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE, Stage.CACHED)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per gate. A cached program is left as it is."""
        if program.stage is Stage.CACHED:
            return PassResult(program, 0)
        edited = program.copy()
        nodes = {node.name: node for node in edited.graph.nodes}
        rewriter = _Rewriter(edited, nodes, list(edited.inputs), {}, [])
        for predicate in program.predicates:
            rewriter.add_decision(predicate)
        for number, gate in enumerate(program.gates):
            rewriter.replace(gate, program.region(gate.region), number)
        output = output_node(edited.graph)
        results = output_values(edited.graph)
        output.args = ((*results, *rewriter.stores),)
        edited.graph.lint()
        edited.module.recompile()
        stores = tuple(name for gate in program.gates for name in gate.buffers)
        cached = edited.evolve(
            stage=Stage.CACHED, inputs=tuple(rewriter.inputs), stores=stores
        )
        return PassResult(cached, len(program.gates))
