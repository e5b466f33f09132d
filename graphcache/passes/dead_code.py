"""dead-code: remove nodes and inputs that nothing reads.

FX keeps `scaled_dot_product_attention`, which it counts as random; ours knows that it
is pure without dropout (`graphcache.ops.is_pure`). A reused attention takes its norm,
its projections and their weights with it this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from graphcache.ops import is_pure
from graphcache.passes.manager import PassResult
from graphcache.program import Input, InputKind, Program, Stage, drop_unused_branches

_KEPT = (InputKind.ARGUMENT, InputKind.DECISION)


def erase_dead_nodes(graph: fx.Graph) -> int:
    """Erase pure nodes without readers; returns how many."""
    erased = 0
    for node in reversed(list(graph.nodes)):
        if not node.users and is_pure(node):
            graph.erase_node(node)
            erased += 1
    return erased


def is_dead_input(entry: Input, node: fx.Node, stage: Stage) -> bool:
    """Whether nothing reads the input and its stage lets it go.

    Until lowering, the arguments and decisions of a program are its interface.
    """
    if node.users:
        return False
    return stage is Stage.LOWERED or entry.kind not in _KEPT


@dataclass(frozen=True)
class DeadCode:
    """Remove nodes and inputs that nothing reads."""

    name: ClassVar[str] = "dead-code"
    before: ClassVar[tuple[Stage, ...]] = tuple(Stage)

    def run(self, program: Program) -> PassResult:
        """Apply the pass."""
        edited = program.copy()
        edits = erase_dead_nodes(edited.graph)
        by_name = {node.name: node for node in edited.graph.nodes}
        kept = []
        for entry in edited.inputs:
            node = by_name[entry.name]
            if is_dead_input(entry, node, program.stage):
                edited.graph.erase_node(node)
                edits += 1
            else:
                kept.append(entry)
        if not edits:
            return PassResult(program, 0)
        drop_unused_branches(edited.module)
        return PassResult(edited.evolve(inputs=tuple(kept)), edits)
