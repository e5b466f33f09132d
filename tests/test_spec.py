"""The verifier refuses malformed programs, each rule with its message."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from graphcache import VerifyError, pyramid_attention_broadcast
from graphcache.ops import is_gate
from graphcache.program import Input, InputKind, Program, Stage, output_node
from graphcache.spec import verify
from tests.models import tiny
from tests.programs import cached, lowered, source

PAB = pyramid_attention_broadcast(spatial=2)
aten = torch.ops.aten


def before_output(program: Program, target: object, *args: object) -> Program:
    """Insert a node, reading the node before the output if no operand is given."""
    edited = program.copy()
    output = output_node(edited.graph)
    with edited.graph.inserting_before(output):
        node = edited.graph.call_function(target, args or (output.prev,))  # type: ignore[arg-type]
    node.meta["val"] = output.args[0][0].meta["val"]  # type: ignore[index,union-attr]
    return edited


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda p: before_output(p, aten.relu_.default),
            "no op may write to its operands: relu_",
        ),
        (
            lambda p: before_output(p, aten._local_scalar_dense.default),
            "no op may read a tensor on the host",
        ),
        (
            lambda p: before_output(p, aten.rand_like.default),
            "no op may draw random numbers",
        ),
        (lambda p: before_output(p, torch.relu), "unknown op"),
        (lambda p: p.evolve(inputs=p.inputs[:-1]), "not the graph's placeholders"),
        (lambda p: p.evolve(stores=("nothing",)), "1 stores, but 0 outputs"),
    ],
)
def test_source_rules(edit: Callable[[Program], Program], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(edit(source(tiny(depth=1))))


def test_message_shows_the_graph_around_the_fault() -> None:
    edited = before_output(source(tiny(depth=1)), aten.relu_.default)
    with pytest.raises(VerifyError) as caught:
        verify(edited)
    lines = str(caught.value).splitlines()
    assert lines[-1] == "    return"
    assert lines[-2].startswith("  > %relu_")
    assert len(lines) == 13


def test_a_node_without_a_type_is_refused() -> None:
    edited = before_output(source(tiny(depth=1)), aten.relu.default)
    del output_node(edited.graph).prev.meta["val"]
    with pytest.raises(VerifyError, match=r"relu.* has no type"):
        verify(edited)


def test_gates_belong_to_cached_programs() -> None:
    program = cached(tiny(depth=1), PAB)
    with pytest.raises(VerifyError, match="unknown op gate_0_compute"):
        verify(program.evolve(stage=Stage.SOURCE))


def test_decisions_do_not_survive_lowering() -> None:
    program = lowered(tiny(depth=1), (True,), PAB)
    entry = Input(program.inputs[0].name, InputKind.DECISION, "spatial")
    with pytest.raises(VerifyError, match="a lowered program has no decision input"):
        verify(program.evolve(inputs=(entry, *program.inputs[1:])))


def test_a_store_has_the_type_of_its_buffer() -> None:
    program = lowered(tiny(depth=1), (True,), PAB)
    output = output_node(program.graph)
    result, _ = output.args[0]  # type: ignore[misc]
    with program.graph.inserting_before(output):
        wrong = program.graph.call_function(aten.sum.default, (result,))
    wrong.meta["val"] = result.meta["val"].sum()
    output.args = ((result, wrong),)
    with pytest.raises(VerifyError, match=r"is f32\[\], the buffer is f32\[2, 3, 8\]"):
        verify(program)


def gate_of(program: Program) -> fx.Node:
    return next(node for node in program.graph.nodes if is_gate(node))


def test_a_gate_obeys_a_decision() -> None:
    program = cached(tiny(depth=1), PAB).copy()
    node = gate_of(program)
    node.args = (node.args[3][0], *node.args[1:])  # type: ignore[index]
    with pytest.raises(VerifyError, match="which is no decision"):
        verify(program)


def test_a_gate_holds_buffers() -> None:
    program = cached(tiny(depth=1), PAB).copy()
    node = gate_of(program)
    node.args = (*node.args[:4], (node.args[3][0],))  # type: ignore[index]
    with pytest.raises(VerifyError, match="which is no buffer"):
        verify(program)


def test_branches_take_what_the_gate_reads() -> None:
    program = cached(tiny(depth=1), PAB).copy()
    node = gate_of(program)
    node.args = (*node.args[:3], node.args[3][1:], node.args[4])  # type: ignore[index]
    with pytest.raises(VerifyError, match="does not take its operands"):
        verify(program)


def test_branches_return_the_same_types() -> None:
    program = cached(tiny(depth=1), PAB).copy()
    reuse = program.module.get_submodule("gate_0_reuse")
    output = output_node(reuse.graph)  # type: ignore[arg-type]
    output.args = (output.args[0][:1],)  # type: ignore[index]
    with pytest.raises(VerifyError, match="branches of gate_0 differ"):
        verify(program)


def test_branches_are_verified_too() -> None:
    program = cached(tiny(depth=1), PAB).copy()
    graph = program.module.get_submodule("gate_0_compute").graph
    output = output_node(graph)  # type: ignore[arg-type]
    with graph.inserting_before(output):  # type: ignore[union-attr,operator]
        graph.call_function(aten.relu_.default, (output.prev,))  # type: ignore[union-attr,operator]
    with pytest.raises(VerifyError, match="no op may write"):
        verify(program)
