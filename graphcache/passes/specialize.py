"""specialize: evaluate decisions and keep the branches they name.

Every gate of a known decision becomes the body of one of its branches, the decision's
input goes, and a buffer that would be replaced by itself is not returned. Where every
decision is known, what remains is a straight line: no branch, no host read, and all
that only fed the other branch is dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from graphcache.analysis.dataflow import descendants
from graphcache.ops import gate_parts, is_gate
from graphcache.passes.branches import inline
from graphcache.passes.manager import PassResult
from graphcache.passes.sink_operands import drop_unread_operands
from graphcache.program import (
    InputKind,
    Program,
    Stage,
    copy_module,
    drop_unused_branches,
    output_node,
    placeholders,
    set_outputs,
)

_DECIDING = (InputKind.DECISION, InputKind.THRESHOLD)
Partial = tuple[bool | None, ...]
"""One entry per predicate, in the program's order; None leaves its gates."""


def replace_gate(module: fx.GraphModule, gate: fx.Node, computes: bool) -> None:
    """Put the body of one branch in the gate's place."""
    graph, parts = module.graph, gate_parts(gate)
    chosen = parts.branches[0 if computes else 1]
    operands = [*parts.operands, *parts.buffers]
    for name, child in chosen.named_children():
        module.add_submodule(name, child)
    with graph.inserting_before(gate):
        values = inline(chosen.graph, graph, operands)
    for item in list(gate.users):
        item.replace_all_uses_with(values[item.args[1]])  # type: ignore[index]
        graph.erase_node(item)
    graph.erase_node(gate)


def replace_gates(module: fx.GraphModule, chosen: Mapping[str, bool]) -> int:
    """Replace every gate of the chosen decisions, at any depth; returns how many."""
    edits = 0
    pending = [node for node in module.graph.nodes if is_gate(node)]
    while pending:
        gate = pending.pop()
        predicate = gate.meta["custom"]["predicate"]
        if predicate in chosen:
            before = set(module.graph.nodes)
            replace_gate(module, gate, chosen[predicate])
            pending.extend(
                node
                for node in module.graph.nodes
                if is_gate(node) and node not in before
            )
            edits += 1
        else:
            edits += _replace_inside(module, gate, chosen)
    return edits


def _replace_inside(
    module: fx.GraphModule, gate: fx.Node, chosen: Mapping[str, bool]
) -> int:
    parts, edits = gate_parts(gate), 0
    for name, side in zip(parts.names, parts.branches, strict=True):
        copied = copy_module(side)
        found = replace_gates(copied, chosen)
        if found:
            drop_unused_branches(copied)
            copied.recompile()
            module.add_submodule(name, copied)
            edits += found
    if edits:
        drop_unread_operands(module, gate)
    return edits


def drop_identity_stores(program: Program) -> tuple[str, ...]:
    """Stop returning buffers that keep their value; returns the stores that remain."""
    sources = {
        entry.name: entry.target for entry in program.inputs_of(InputKind.BUFFER)
    }
    outputs = program.outputs
    kept = [
        (store, value)
        for store, value in zip(program.stores, outputs.stores, strict=True)
        if sources.get(value.name) != store
    ]
    values = tuple(value for _, value in kept)
    set_outputs(program.graph, replace(outputs, stores=values))
    return tuple(store for store, _ in kept)


def protect_results(program: Program) -> int:
    """Copy results that would hand a buffer itself to the caller; returns how many.

    The caller may write to what it gets; the cache must not see it.
    """
    graph, outputs = program.graph, program.outputs
    buffers = {entry.name for entry in program.inputs_of(InputKind.BUFFER)}
    results = list(outputs.results)
    cached = {_storage_root(value) for value in outputs.stores}
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
    set_outputs(graph, replace(outputs, results=tuple(results)))
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
    """Lower a cached program for known decisions.

    Args:
        signature: One entry per predicate of the program, in its order: True computes,
            False reuses, None leaves the decision to a later pass.
    """

    signature: Partial
    name: ClassVar[str] = "specialize"
    before: ClassVar[tuple[Stage, ...]] = (Stage.CACHED, Stage.LOWERED)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per gate. A lowered program is left as it is."""
        if program.stage is Stage.LOWERED:
            return PassResult(program, 0)
        pairs = zip(program.predicates, self.signature, strict=True)
        chosen = {name: value for name, value in pairs if value is not None}
        edited = program.copy()
        edits = replace_gates(edited.module, chosen)
        if not edits:
            return PassResult(program, 0)
        edited = _without_scores(edited, chosen)
        if not any(is_gate(node) for node in edited.graph.nodes):
            stores = drop_identity_stores(edited)
            edited = edited.evolve(stage=Stage.LOWERED, stores=stores)
            protect_results(edited)
        return PassResult(_without_decisions(edited, chosen), edits)


def _without_scores(program: Program, chosen: Mapping[str, bool]) -> Program:
    """A decision that is known is not asked of the host any more."""
    outputs = program.outputs
    kept = [
        (name, value)
        for name, value in zip(program.scores, outputs.scores, strict=True)
        if name not in chosen
    ]
    values = tuple(value for _, value in kept)
    set_outputs(program.graph, replace(outputs, scores=values))
    return program.evolve(scores=tuple(name for name, _ in kept))


def _without_decisions(program: Program, chosen: Mapping[str, bool]) -> Program:
    """Drop the inputs of decisions that are known, and what only worked them out."""
    graph = program.graph
    by_name = {node.name: node for node in graph.nodes}
    decided = [
        by_name[entry.name]
        for entry in program.inputs
        if entry.kind in _DECIDING and entry.target in chosen
    ]
    unread = descendants(decided) | set(decided)
    for node in reversed(list(graph.nodes)):
        dead = node in unread or node.op == "get_attr"
        if dead and node.op != "output" and not node.users:
            graph.erase_node(node)
    left = {node.name for node in placeholders(graph)}
    drop_unused_branches(program.module)
    program.module.recompile()
    return program.evolve(inputs=tuple(e for e in program.inputs if e.name in left))
