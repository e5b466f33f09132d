"""insert-gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphcache import VerifyError, never_reuse, pyramid_attention_broadcast
from graphcache.ops import gate_parts, is_gate
from graphcache.passes.find_regions import FindRegions
from graphcache.passes.insert_gates import InsertGates
from graphcache.passes.manager import run_passes
from graphcache.passes.plan_gates import PlanGates
from graphcache.printer import format_program
from graphcache.program import InputKind, Program, Stage, output_node
from graphcache.spec import verify
from tests.models import tiny
from tests.passes.test_find_regions import JOINT, Joint, Twice
from tests.programs import source


def gated(module: nn.Module, inputs: dict[str, Any] | None = None) -> Program:
    passes = [FindRegions(), PlanGates((never_reuse(),)), InsertGates()]
    return run_passes(source(module, inputs), passes)


def test_the_cache_is_inputs_outputs_and_one_op() -> None:
    program = gated(tiny(depth=1))
    assert program.stage is Stage.CACHED
    kinds = [entry.kind for entry in program.inputs][-2:]
    assert kinds == [InputKind.DECISION, InputKind.BUFFER]
    assert program.stores == ("blocks.0.attn1.0",)
    text = format_program(program)
    assert text.count("gate ?always") == 1
    assert text.endswith("return %mul_1 | &blocks.0.attn1.0 = %getitem_1\n}")


def test_branches_keep_the_region_and_hold_its_output() -> None:
    program = gated(tiny(depth=1))
    (node,) = [n for n in program.graph.nodes if is_gate(n)]
    compute, reuse = gate_parts(node).branches
    assert "scaled_dot_product_attention" in compute.code
    assert [n for n in reuse.graph.nodes if n.op == "call_function"] == []


def test_regions_that_feed_each_other_are_gated_one_after_the_other() -> None:
    program = gated(Twice().eval(), {"x": torch.zeros(1, 2, 8)})
    assert [gate.region for gate in program.gates] == ["attn", "attn@1"]
    assert program.stores == ("attn.0", "attn@1.0")


def test_both_results_of_a_split_are_held_without_a_copy() -> None:
    program = gated(Joint().eval(), JOINT)
    (node,) = [n for n in program.graph.nodes if is_gate(n)]
    assert "clone" not in gate_parts(node).branches[0].code


class HalfJoint(Joint):
    """Reads one of the two results only."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """f32[1, 2, 4] and f32[1, 3, 4] to f32[1, 2, 4]."""
        return self.attn(x, y)[0] * 2


def test_a_buffer_does_not_keep_a_larger_storage_alive() -> None:
    program = gated(HalfJoint().eval(), JOINT)
    (node,) = [n for n in program.graph.nodes if is_gate(n)]
    assert "clone" in gate_parts(node).branches[0].code
    assert program.buffer_bytes == 2 * 4 * 4


def test_without_a_plan_nothing_happens_and_twice_is_once() -> None:
    program = gated(tiny())
    assert InsertGates().run(program).edits == 0
    assert InsertGates().run(source(tiny())).edits == 0


def test_the_verifier_refuses_a_lost_store() -> None:
    program = gated(tiny(depth=1)).copy()
    output = output_node(program.graph)
    output.args = (output.args[0][:-1],)  # type: ignore[index]
    with pytest.raises(VerifyError, match="1 stores, but 0 outputs in their place"):
        verify(program)


def test_policies_of_one_program_share_a_decision_by_name() -> None:
    policies = pyramid_attention_broadcast(spatial=2)
    passes = [FindRegions(), PlanGates(policies), InsertGates()]
    program = run_passes(source(tiny(depth=3)), passes)
    assert [e.target for e in program.inputs_of(InputKind.DECISION)] == ["spatial"]
