"""specialize: evaluate the decisions and keep the branches they name.

Every gate becomes the body of one of its branches, every decision input goes, and a
buffer that would be replaced by itself is not returned. What remains is a straight
line: no branch, no host read, and all that only fed the other branch is dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graphcache.ops import gate_parts, is_gate
from graphcache.passes.insert_gates import inline
from graphcache.passes.manager import PassResult
from graphcache.policy.decisions import Signature
from graphcache.program import (
    InputKind,
    Program,
    Stage,
    output_node,
    output_values,
)


def replace_gate(graph: fx.Graph, gate: fx.Node, computes: bool) -> None:
    """Put the body of one branch in the gate's place."""
    parts = gate_parts(gate)
    chosen = parts.branches[0 if computes else 1]
    operands = [*parts.operands, *parts.buffers]
    with graph.inserting_before(gate):
        values = inline(chosen.graph, graph, operands)
    for item in list(gate.users):
        item.replace_all_uses_with(values[item.args[1]])  # type: ignore[index]
        graph.erase_node(item)
    graph.erase_node(gate)


def drop_identity_stores(program: Program) -> tuple[str, ...]:
    """Stop returning buffers that keep their value; returns the stores that remain."""
    sources = {
        entry.name: entry.target for entry in program.inputs_of(InputKind.BUFFER)
    }
    values = output_values(program.graph)
    results, held = values[: program.results], values[program.results :]
    kept = [
        (store, value)
        for store, value in zip(program.stores, held, strict=True)
        if sources.get(value.name) != store
    ]
    output_node(program.graph).args = ((*results, *(value for _, value in kept)),)
    return tuple(store for store, _ in kept)


def protect_results(program: Program) -> int:
    """Copy results that would hand a buffer itself to the caller; returns how many.

    The caller may write to what it gets; the cache must not see it.
    """
    graph = program.graph
    buffers = {entry.name for entry in program.inputs_of(InputKind.BUFFER)}
    values = list(output_values(graph))
    results, held = values[: program.results], values[program.results :]
    cached = {_storage_root(value) for value in held}
    copies = 0
    for index, value in enumerate(results):
        root = _storage_root(value)
        if root.name in buffers or root in cached:
            with graph.inserting_before(output_node(graph)):
                results[index] = graph.call_function(
                    torch.ops.aten.clone.default, (value,)
                )
                results[index].meta["val"] = value.meta["val"]
            copies += 1
    output_node(graph).args = ((*results, *held),)
    return copies


def _storage_root(node: fx.Node) -> fx.Node:
    """The node whose storage a chain of views shows."""
    while node.op == "call_function":
        op = node.target
        is_view = isinstance(op, torch._ops.OpOverload) and op.is_view
        is_item = getattr(op, "__name__", "") == "getitem"
        if not (is_view or is_item):
            break
        node = node.all_input_nodes[0]
    return node


@dataclass(frozen=True)
class Specialize:
    """Lower a cached program for one decision signature.

    Args:
        signature: One bool per predicate of the program, in its order; True computes.
    """

    signature: Signature
    name: ClassVar[str] = "specialize"
    before: ClassVar[tuple[Stage, ...]] = (Stage.CACHED, Stage.LOWERED)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per gate. A lowered program is left as it is."""
        if program.stage is Stage.LOWERED:
            return PassResult(program, 0)
        chosen = dict(zip(program.predicates, self.signature, strict=True))
        edited = program.copy()
        gates = [node for node in edited.graph.nodes if is_gate(node)]
        for node in gates:
            predicate = node.meta["custom"]["predicate"]
            replace_gate(edited.graph, node, chosen[predicate])
        stores = drop_identity_stores(edited)
        edited = edited.evolve(stage=Stage.LOWERED, stores=stores)
        protect_results(edited)
        edited = _without_decisions(edited)
        return PassResult(edited, len(gates))


def _without_decisions(program: Program) -> Program:
    graph = program.graph
    by_name = {node.name: node for node in graph.nodes}
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    for entry in program.inputs_of(InputKind.DECISION):
        graph.erase_node(by_name[entry.name])
    program.module.delete_all_unused_submodules()
    program.module.recompile()
    inputs = tuple(e for e in program.inputs if e.kind is not InputKind.DECISION)
    return program.evolve(inputs=inputs)
