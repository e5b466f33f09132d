"""insert-gates: each tagged region becomes one `gate` op.

The compute branch is the region followed by the predictor's `update`, the reuse branch
its `predict`. Decisions, scalars and buffers become inputs of the program, the buffers'
new values its outputs: from here on the cache is data flow. A decision that the graph
takes is worked out ahead of the gates that obey it, and what it remembers is a gate of
its own, without results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphcache.analysis.dataflow import sort_topologically
from graphcache.passes.gate_rewriter import GateRewriter
from graphcache.passes.manager import PassResult
from graphcache.program import (
    Outputs,
    Program,
    Stage,
    drop_unused_branches,
    set_outputs,
)


@dataclass(frozen=True)
class InsertGates:
    """Turn every tagged region into a gate over explicit buffers.

    Args:
        dense: Whether every buffer is dense, so that another graph may fill it too.
    """

    dense: bool = False
    name: ClassVar[str] = "insert-gates"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE, Stage.CACHED)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per gate. A cached program is left as it is."""
        if program.stage is Stage.CACHED:
            return PassResult(program, 0)
        edited = program.copy()
        nodes = {node.name: node for node in edited.graph.nodes}
        rewriter = GateRewriter(edited, nodes, list(edited.inputs), self.dense)
        rewriter.add_numbers()
        for metric in program.metrics:
            rewriter.measure(metric)
        for gate in program.gates:
            rewriter.replace(gate, program.region(gate.region))
        names = tuple(buffer.name for buffer in program.buffers)
        predicates = tuple(metric.predicate for metric in program.metrics)
        set_outputs(
            edited.graph,
            Outputs(
                edited.outputs.results,
                tuple(rewriter.stores[name] for name in names),
                tuple(rewriter.scores[name] for name in predicates),
                (),
            ),
        )
        sort_topologically(edited.graph)
        edited.graph.lint()
        drop_unused_branches(edited.module)
        edited.module.recompile()
        cached = edited.evolve(
            stage=Stage.CACHED,
            inputs=tuple(rewriter.inputs),
            stores=names,
            scores=predicates,
        )
        return PassResult(cached, len(program.gates))
