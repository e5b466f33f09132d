"""sink-operands."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphcache import never_reuse
from graphcache.ops import gate_parts, is_gate
from graphcache.passes.insert_gates import InsertGates
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import rewrite_pipeline
from graphcache.passes.sink_operands import SinkOperands
from graphcache.program import Program
from tests.models import TinyAttention, tiny, tiny_inputs
from tests.programs import cached, ops, source


def before(depth: int = 1, cross: bool = False) -> Program:
    pipeline = rewrite_pipeline((never_reuse(),))
    stop = [step.name for step in pipeline].index(InsertGates.name) + 1
    return run_passes(source(tiny(depth=depth, cross=cross)), pipeline[:stop])


def inside(program: Program) -> str:
    (node,) = [n for n in program.graph.nodes if is_gate(n)]
    return gate_parts(node).branches[0].code


def test_norm_and_modulation_move_under_the_gate() -> None:
    program = before()
    assert "layer_norm" in ops(program)
    result = SinkOperands().run(program)
    assert ops(result.program) == ["add", "linear", "relu", "mul", "add", "mul"]
    assert "layer_norm" in inside(result.program)
    # unsqueeze, linear, unsqueeze, div of the timestep; layer_norm, add.
    assert result.edits == 6


def test_what_others_read_stays_outside() -> None:
    program = SinkOperands().run(before(depth=2)).program
    # The shift feeds both gates, so it moves into neither.
    assert ops(program).count("div") == 1


def test_the_reuse_branch_reads_no_operand() -> None:
    program = SinkOperands().run(before(cross=True)).program
    for node in program.graph.nodes:
        if is_gate(node):
            reuse = gate_parts(node).branches[1]
            assert [n for n in reuse.graph.nodes if n.op == "call_function"] == []


def test_is_bitwise_and_idempotent() -> None:
    program = before(depth=2, cross=True)
    after = run_passes(program, [SinkOperands()])
    module = tiny(depth=2, cross=True)
    weights = dict(module.named_parameters())
    inputs = tiny_inputs()
    zeros = {b.name: torch.zeros(b.type.shape) for b in program.buffers}
    runs = []
    for side in (program, after):
        pool = {**weights, **inputs, **zeros, "always": torch.tensor(True)}
        runs.append(side.module(*[pool[entry.target] for entry in side.inputs]))
    assert all(map(torch.equal, *runs))
    assert SinkOperands().run(after).edits == 0
    assert SinkOperands().run(cached(tiny())).edits == 0


class Chained(nn.Module):
    """Attention that reads one result of another alone, and a slice of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TinyAttention()
        self.second = TinyAttention()

    def forward(self, x: Tensor) -> Tensor:
        """f32[1, 4, 8] to f32[1, 2, 8]."""
        left, right = self.first(x).split(2, 1)
        return right + self.second(left.relu())


def test_a_gate_reads_tensors_only() -> None:
    x = torch.zeros(1, 4, 8)
    program = run_passes(
        source(Chained().eval(), {"x": x}), rewrite_pipeline((never_reuse(),))
    )
    for node in program.graph.nodes:
        if is_gate(node):
            values = [operand.meta["val"] for operand in gate_parts(node).operands]
            assert all(isinstance(value, Tensor) for value in values)
    assert "relu" in inside_last(program)


def inside_last(program: Program) -> str:
    node = [n for n in program.graph.nodes if is_gate(n)][-1]
    return gate_parts(node).branches[0].code
