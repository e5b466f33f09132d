"""conditional: every gate becomes a `torch.cond`, in one graph with all branches.

A condition may give back neither an operand nor one value twice. What a gate gives
twice in both branches (an output that is its own buffer) is given once, and an operand
that passes through is copied.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphcache.ops import gate_parts, is_gate
from graphcache.passes.branches import buffer_like, finish
from graphcache.passes.manager import PassResult
from graphcache.passes.specialize import protect_results
from graphcache.program import (
    Program,
    Stage,
    copy_module,
    drop_unused_branches,
    fake_value,
    is_getitem,
    output_values,
    placeholders,
)

_clone = torch.ops.aten.clone.default
_cond = torch.ops.higher_order.cond


def distinct(sides: Sequence[fx.GraphModule]) -> tuple[list[int], list[int]]:
    """Which outputs both branches give once, and where each output is among them."""
    values = list(zip(*(output_values(side.graph) for side in sides), strict=True))
    places: dict[Any, int] = {}
    where = [places.setdefault(pair, len(places)) for pair in values]
    return [where.index(place) for place in range(len(places))], where


def as_side(side: fx.GraphModule, kept: Sequence[int]) -> fx.GraphModule:
    """A branch as a condition takes it: its own gates are conditions, nothing aliases.

    Args:
        side: A branch of a gate.
        kept: Which of its outputs to give.
    """
    copied = copy_module(side)
    convert(copied)
    graph = copied.graph
    inputs = set(placeholders(graph))
    values = [output_values(graph)[index] for index in kept]
    taken: set[fx.Node] = set()
    graph.erase_node(next(n for n in reversed(graph.nodes) if n.op == "output"))
    given = []
    for value in values:
        if value in inputs or value in taken or _is_view(value):
            node = graph.call_function(
                _clone, (value,), {"memory_format": torch.contiguous_format}
            )
            node.meta["val"] = buffer_like(fake_value(value), contiguous=True)
            given.append(node)
        else:
            given.append(value)
        taken.add(value)
    return finish(graph, given, copied)


def _is_view(node: fx.Node) -> bool:
    """Whether a value lies in the memory of another: a split gives several that do."""
    if is_getitem(node):
        node = node.all_input_nodes[0]
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def convert(module: fx.GraphModule) -> int:
    """Turn every gate of a graph into a condition; returns how many."""
    gates = [node for node in module.graph.nodes if is_gate(node)]
    for gate in gates:
        convert_gate(module, gate)
    module.recompile()
    return len(gates)


def convert_gate(module: fx.GraphModule, gate: fx.Node) -> None:
    """Turn one gate into a condition."""
    graph, parts = module.graph, gate_parts(gate)
    kept, where = distinct(parts.branches)
    sides = [as_side(side, kept) for side in parts.branches]
    for name, side in zip(parts.names, sides, strict=True):
        module.add_submodule(name, side)
    values = [fake_value(value) for value in output_values(sides[0].graph)]
    with graph.inserting_before(gate):
        condition = graph.call_function(
            _cond,
            (*gate.args[:3], (*parts.operands, *parts.buffers)),
            name=gate.name.replace("gate", "cond"),
        )
        condition.meta = {"val": tuple(values), "custom": dict(gate.meta["custom"])}
        items = [_item(graph, condition, i, value) for i, value in enumerate(values)]
    for user in list(gate.users):
        place: Any = user.args[1]
        user.replace_all_uses_with(items[where[place]])
        graph.erase_node(user)
    graph.erase_node(gate)
    for item in items:
        if not item.users:
            graph.erase_node(item)


def _item(graph: fx.Graph, source: fx.Node, index: int, value: Any) -> fx.Node:
    item = graph.call_function(operator.getitem, (source, index))
    item.meta["val"] = value
    return item


@dataclass(frozen=True)
class Conditional:
    """Lower gates to `torch.cond`."""

    name: ClassVar[str] = "conditional"
    before: ClassVar[tuple[Stage, ...]] = (Stage.CACHED, Stage.CONDITIONAL)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per gate. A conditional program stays as it is."""
        if program.stage is Stage.CONDITIONAL:
            return PassResult(program, 0)
        edited = program.copy()
        edits = convert(edited.module)
        edited = edited.evolve(stage=Stage.CONDITIONAL)
        protect_results(edited)
        drop_unused_branches(edited.module)
        edited.module.recompile()
        return PassResult(edited, edits)
