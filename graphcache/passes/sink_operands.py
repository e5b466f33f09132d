"""sink-operands: what one branch alone reads is computed inside that branch.

The norm and the modulation that feed an attention are of no use when it is reused.
Sinking their producers into the compute branch puts the whole saving under the gate,
whatever the lowering.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from graphcache.ops import gate_parts, is_gate, is_pure
from graphcache.passes.branches import branch, finish
from graphcache.passes.manager import PassResult
from graphcache.program import (
    Program,
    Stage,
    copy_module,
    is_getitem,
    output_values,
    placeholders,
)


@dataclass(frozen=True)
class Sinking:
    """What moves into one gate.

    Attributes:
        moved: Per branch (compute, reuse), the nodes that move in, in graph order.
        operands: The gate's operands afterwards.
        edits: Nodes moved and unread operands dropped.
    """

    moved: tuple[list[fx.Node], list[fx.Node]]
    operands: list[fx.Node]
    edits: int


def reads(side: fx.GraphModule, operands: Sequence[fx.Node]) -> set[fx.Node]:
    """Which of the gate's operands a branch reads."""
    inner = placeholders(side.graph)
    return {
        operand for operand, node in zip(operands, inner, strict=False) if node.users
    }


def sinkable(
    node: fx.Node, gate: fx.Node, wanted: set[fx.Node], moved: Container[fx.Node]
) -> bool:
    """Whether a node is read by one branch of one gate and nothing else."""
    if node.op == "get_attr":
        # A function goes where the node goes that is given it.
        return bool(node.users) and all(user in moved for user in node.users)
    if node.op != "call_function" or is_gate(node) or not is_pure(node):
        return False
    if gate in node.users and node not in wanted:
        return False
    return bool(node.users) and all(
        user is gate or user in moved for user in node.users
    )


def without_stray_items(moved: Mapping[fx.Node, None]) -> list[fx.Node]:
    """The nodes in graph order, less the items of tuples that stay outside.

    A branch takes tensors, so that a tuple never becomes an operand of a gate.
    """
    return [
        node
        for node in reversed(list(moved))
        if not (is_getitem(node) and node.args[0] not in moved)
    ]


def plan_sinking(gate: fx.Node) -> Sinking:
    """What can move into the branches of one gate."""
    parts = gate_parts(gate)
    operands, buffers = parts.operands, set(parts.buffers)
    read = [reads(side, operands) for side in parts.branches]
    moved: list[list[fx.Node]] = []
    for own, other in (read, read[::-1]):
        inside: dict[fx.Node, None] = {}
        node = gate.prev
        while node.op != "root":
            if node not in buffers and sinkable(node, gate, own - other, inside):
                inside[node] = None
            node = node.prev
        moved.append(without_stray_items(inside))
    kept = dict.fromkeys(node for node in operands if node in read[0] | read[1])
    for side in moved:
        for node in side:
            kept.pop(node, None)
            kept |= dict.fromkeys(node.all_input_nodes)
    gone = {*moved[0], *moved[1]}
    unread = set(operands) - read[0] - read[1]
    return Sinking(
        moved=(moved[0], moved[1]),
        operands=[node for node in kept if node not in gone],
        edits=len(gone) + len(unread),
    )


def rebuild(
    module: fx.GraphModule,
    old: fx.GraphModule,
    old_operands: Sequence[fx.Node],
    buffers: Sequence[fx.Node],
    sinking: Sinking,
    moved: Sequence[fx.Node],
) -> fx.GraphModule:
    """A branch over the new operands, with the moved nodes ahead of its body.

    Args:
        module: Holds the functions of the moved nodes.
        old: The branch as it was.
        old_operands: Its operands.
        buffers: Its buffers.
        sinking: What moves into the gate.
        moved: What of that moves into this branch.
    """
    graph = branch(sinking.operands, buffers)
    outer = dict(zip((*sinking.operands, *buffers), placeholders(graph), strict=True))
    for node in moved:
        outer[node] = graph.node_copy(node, outer.__getitem__)
        outer[node].meta = dict(node.meta)
    inner: dict[fx.Node, fx.Node] = {}
    for source, node in zip(
        (*old_operands, *buffers), placeholders(old.graph), strict=True
    ):
        if source in outer:
            inner[node] = outer[source]
    for node in old.graph.nodes:
        if node.op not in ("placeholder", "output"):
            inner[node] = graph.node_copy(node, inner.__getitem__)
            inner[node].meta = dict(node.meta)
    values = [inner[value] for value in output_values(old.graph)]
    return finish(graph, values, module, old)


def sink_into(module: fx.GraphModule, gate: fx.Node) -> int:
    """Move producers into one gate; returns how many nodes moved or were dropped."""
    return _rebuild_gate(module, gate, plan_sinking(gate))


def drop_unread_operands(module: fx.GraphModule, gate: fx.Node) -> int:
    """Drop the operands that neither branch reads; returns how many."""
    parts = gate_parts(gate)
    read = set().union(*(reads(side, parts.operands) for side in parts.branches))
    kept = [node for node in dict.fromkeys(parts.operands) if node in read]
    unread = len(set(parts.operands) - read)
    return _rebuild_gate(module, gate, Sinking(([], []), kept, unread))


def _rebuild_gate(module: fx.GraphModule, gate: fx.Node, sinking: Sinking) -> int:
    parts = gate_parts(gate)
    if not sinking.edits:
        return 0
    for name, old, moved in zip(
        parts.names, parts.branches, sinking.moved, strict=True
    ):
        new = rebuild(module, old, parts.operands, parts.buffers, sinking, moved)
        module.add_submodule(name, new)
    gate.args = (*gate.args[:3], tuple(sinking.operands), parts.buffers)
    for node in reversed([*sinking.moved[0], *sinking.moved[1]]):
        module.graph.erase_node(node)
    return sinking.edits


def sink_all(module: fx.GraphModule) -> int:
    """Sink into every gate of a graph, then into the gates inside their branches."""
    gates = [node for node in module.graph.nodes if is_gate(node)]
    edits = sum(sink_into(module, node) for node in gates)
    for gate in gates:
        parts = gate_parts(gate)
        for name, side in zip(parts.names, parts.branches, strict=True):
            copied = copy_module(side)
            found = sink_all(copied)
            if found:
                copied.recompile()
                module.add_submodule(name, copied)
                edits += found
    return edits


@dataclass(frozen=True)
class SinkOperands:
    """Move what only one branch of a gate reads into that branch."""

    name: ClassVar[str] = "sink-operands"
    before: ClassVar[tuple[Stage, ...]] = (Stage.CACHED,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per node moved, or per unread operand dropped."""
        edited = program.copy()
        edits = sink_all(edited.module)
        if not edits:
            return PassResult(program, 0)
        edited.module.recompile()
        return PassResult(edited, edits)
