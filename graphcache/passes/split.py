"""split: cut a program where the graph takes a decision.

What the score is worked out from becomes a head, everything after it a tail that is
lowered once for each outcome: head graph, one scalar read by the host, one of two
tails. Values that a tail needs of the head are handed over as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, fx

from graphcache.analysis.dataflow import ancestors, with_items
from graphcache.errors import VerifyError
from graphcache.ops import is_gate
from graphcache.program import (
    Input,
    InputKind,
    Outputs,
    Program,
    Stage,
    drop_unused_branches,
    fake_value,
    placeholders,
    set_outputs,
)


@dataclass(frozen=True)
class Cut:
    """Where a program is cut.

    Attributes:
        predicate: The decision.
        score: The node that the host reads.
        head: The nodes that the score is worked out from, and itself.
    """

    predicate: str
    score: fx.Node
    head: frozenset[fx.Node]


def next_cut(program: Program) -> Cut | None:
    """The next decision that the graph can take: no gate stands before its score."""
    for predicate, score in zip(program.scores, program.outputs.scores, strict=True):
        head = with_items(ancestors([score]))
        if not any(is_gate(node) for node in head):
            return Cut(predicate, score, frozenset(head))
    if program.scores:
        raise VerifyError(f"the scores of {program.scores} depend on one another")
    return None


def live_name(cut: Cut, node: fx.Node) -> str:
    """The name under which the head hands a value over."""
    return f"{cut.predicate}/{node.name}"


def tail_of(program: Program, cut: Cut) -> Program:
    """The program without its head, whose values are inputs."""
    names = {node.name for node in cut.head if node.op == "call_function"}
    names -= {node.name for node in _repeated_sizes(program, cut)}
    edited = program.copy()
    graph = edited.graph
    inputs = list(edited.inputs)
    for node in [node for node in graph.nodes if node.name in names]:
        readers = [user for user in node.users if user.name not in names]
        if not readers:
            continue
        with graph.inserting_after(placeholders(graph)[-1]):
            live = graph.placeholder(f"live_{node.name}")
        live.meta["val"] = fake_value(node)
        inputs.append(Input(live.name, InputKind.LIVE, f"{cut.predicate}/{node.name}"))
        node.replace_all_uses_with(
            live, delete_user_cb=lambda user: user.name not in names
        )
    outputs = edited.outputs
    ours = _head_stores(program, cut)
    stores = [
        (name, value)
        for name, value in zip(edited.stores, outputs.stores, strict=True)
        if name not in ours
    ]
    scores = [
        (name, value)
        for name, value in zip(edited.scores, outputs.scores, strict=True)
        if name != cut.predicate
    ]
    set_outputs(
        graph,
        replace(
            outputs,
            stores=tuple(value for _, value in stores),
            scores=tuple(value for _, value in scores),
        ),
    )
    for node in reversed([node for node in graph.nodes if node.name in names]):
        graph.erase_node(node)
    edited.module.recompile()
    return edited.evolve(
        inputs=tuple(inputs),
        stores=tuple(name for name, _ in stores),
        scores=tuple(name for name, _ in scores),
    )


def _repeated_sizes(program: Program, cut: Cut) -> set[fx.Node]:
    """Sizes that the head works out and a tail reads.

    A number does not cross a cut: the tail takes it from the tensor once more.
    """
    found: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node in cut.head and node.op == "call_function" and not _holds(node):
            if any(user not in cut.head or user in found for user in node.users):
                found.add(node)
    return found


def _holds(node: fx.Node) -> bool:
    """Whether a node gives a tensor or a tuple of them, not a number."""
    return isinstance(fake_value(node), (Tensor, tuple, list))


def _head_stores(program: Program, cut: Cut) -> dict[str, fx.Node]:
    """Buffers whose new values the head works out."""
    values = program.outputs.stores
    return {
        name: value
        for name, value in zip(program.stores, values, strict=True)
        if value in cut.head and value.op == "call_function"
    }


def head_of(program: Program, cut: Cut, lives: Iterable[str]) -> Program:
    """The head: it returns its stores, the score and what the tails read.

    Args:
        program: The program that is cut.
        cut: Where.
        lives: Names of what the tails read.
    """
    wanted = list(dict.fromkeys(lives))
    by_name = {live_name(cut, node): node.name for node in cut.head}
    stores = {name: node.name for name, node in _head_stores(program, cut).items()}
    edited = program.copy()
    nodes = {node.name: node for node in edited.graph.nodes}
    set_outputs(
        edited.graph,
        Outputs(
            (),
            tuple(nodes[name] for name in stores.values()),
            (nodes[cut.score.name],),
            tuple(nodes[by_name[name]] for name in wanted),
        ),
    )
    kept = {node.name for node in cut.head}
    for node in reversed(list(edited.graph.nodes)):
        if node.op != "output" and node.name not in kept:
            edited.graph.erase_node(node)
    drop_unused_branches(edited.module)
    edited.module.recompile()
    return edited.evolve(
        stage=Stage.LOWERED,
        inputs=tuple(entry for entry in edited.inputs if entry.name in kept),
        results=0,
        stores=tuple(stores),
        scores=(cut.predicate,),
        lives=tuple(wanted),
    )


def lives_of(program: Program, cut: Cut) -> list[str]:
    """What a program reads of the head."""
    prefix = f"{cut.predicate}/"
    return [
        entry.target
        for entry in program.inputs_of(InputKind.LIVE)
        if entry.target.startswith(prefix)
    ]
