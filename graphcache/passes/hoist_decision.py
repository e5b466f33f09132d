"""hoist-decision: a decision of the graph that the timestep alone determines.

What the score is worked out from depends on weights, the prompt, the timestep and what
the indicator remembers, and on nothing else. Such a decision needs no cut: a program of
its own works it out ahead of the step, or ahead of the whole loop, and to the rest of
the compiler it is one of the host's.
"""

from __future__ import annotations

from torch import fx

from graphcache.analysis.binding import Time, time_of_input, timestep_input
from graphcache.analysis.dataflow import ancestors
from graphcache.ops import is_gate
from graphcache.passes.dead_code import erase_dead_nodes
from graphcache.program import (
    InputKind,
    Metric,
    Outputs,
    Program,
    drop_unused_branches,
    set_outputs,
)


def hoistable(program: Program) -> tuple[str, ...]:
    """The decisions of the graph that the timestep alone determines."""
    return tuple(
        metric.predicate for metric in program.metrics if _is_hoistable(program, metric)
    )


def _is_hoistable(program: Program, metric: Metric) -> bool:
    if metric.predicate not in program.scores:
        return False
    entries = {entry.name: entry for entry in program.inputs}
    timestep = timestep_input(program)
    for node in ancestors([_score(program, metric.predicate)]):
        if is_gate(node):
            return False
        entry = entries.get(node.name)
        if entry is None or entry.kind is InputKind.SCALAR:
            continue
        own = entry.kind is InputKind.BUFFER and entry.target in metric.buffers
        if not own and time_of_input(entry, timestep) > Time.TIMESTEP:
            return False
    return True


def _score(program: Program, predicate: str) -> fx.Node:
    score: fx.Node = program.outputs.scores[program.scores.index(predicate)]
    return score


def indicator_program(program: Program, predicate: str) -> Program:
    """The program that works out one decision, and nothing else.

    Args:
        program: A cached program.
        predicate: One of its `hoistable` decisions.

    Returns:
        A cached program without results; its stores are the indicator's buffers.
    """
    metric = program.metric(predicate)
    assert metric is not None
    edited = program.copy()
    stores = dict(zip(edited.stores, edited.outputs.stores, strict=True))
    kept = tuple(stores[name] for name in metric.buffers)
    set_outputs(edited.graph, Outputs((), kept, (_score(edited, predicate),), ()))
    erase_dead_nodes(edited.graph)
    left = []
    for entry in edited.inputs:
        node = next(n for n in edited.graph.nodes if n.name == entry.name)
        if node.users:
            left.append(entry)
        else:
            edited.graph.erase_node(node)
    drop_unused_branches(edited.module)
    edited.module.recompile()
    return edited.evolve(
        inputs=tuple(left),
        results=0,
        stores=metric.buffers,
        scores=(predicate,),
        metrics=(metric,),
        buffers=tuple(b for b in edited.buffers if b.name in metric.buffers),
    )
