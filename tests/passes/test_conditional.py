"""conditional."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline

from graphcache import pyramid_attention_broadcast
from graphcache.ops import is_gate
from graphcache.passes.conditional import Conditional
from graphcache.passes.manager import run_passes
from graphcache.policy import Blocks, HoldOutput, Interval, Policy
from graphcache.printer import format_program
from graphcache.program import Program, Stage, output_values, placeholders
from tests.models import tiny
from tests.programs import cached

PAB = pyramid_attention_broadcast(spatial=2)
COND = torch.ops.higher_order.cond


def conditional(config: object = PAB, depth: int = 1) -> Program:
    return run_passes(cached(tiny(depth=depth), config), [Conditional()])


def test_a_gate_becomes_a_condition_that_gives_a_held_output_once() -> None:
    program = conditional()
    assert program.stage is Stage.CONDITIONAL
    assert_expected_inline(
        format_program(program),
        """\
conditional program {
  input %hidden_states: f32[2, 3, 8]
  input %encoder_hidden_states: f32[2, 4, 8]
  input %timestep: f32[2]
  input ?spatial: bool[]
  input &blocks.0.attn1.0: f32[2, 3, 8]
  region blocks.0: block
  region blocks.0.attn1: self attention gate spatial
  # blocks.0.attn1
  %getitem_2: f32[2, 3, 8] = cond ?spatial {
    compute:
      %unsqueeze: f32[2, 1] = unsqueeze(%timestep, 1)
      %linear: f32[2, 8] = linear(%unsqueeze, @time.weight, @time.bias)
      %unsqueeze_1: f32[2, 1, 8] = unsqueeze(%linear, 1)
      %div: f32[2, 1, 8] = div(%unsqueeze_1, 1000)
      %layer_norm: f32[2, 3, 8] = layer_norm(%hidden_states, [8], @blocks.0.norm.weight, @blocks.0.norm.bias, 1e-05, False)
      %add: f32[2, 3, 8] = add(%layer_norm, %div)
      %linear_1: f32[2, 3, 8] = linear(%add, @blocks.0.attn1.to_q.weight, @blocks.0.attn1.to_q.bias)
      %view: f32[2, 3, 2, 4] = view(%linear_1, [2, 3, 2, 4])
      %transpose: f32[2, 2, 3, 4] = transpose(%view, 1, 2)
      %linear_2: f32[2, 3, 8] = linear(%add, @blocks.0.attn1.to_k.weight, @blocks.0.attn1.to_k.bias)
      %view_1: f32[2, 3, 2, 4] = view(%linear_2, [2, 3, 2, 4])
      %transpose_1: f32[2, 2, 3, 4] = transpose(%view_1, 1, 2)
      %linear_3: f32[2, 3, 8] = linear(%add, @blocks.0.attn1.to_v.weight, @blocks.0.attn1.to_v.bias)
      %view_2: f32[2, 3, 2, 4] = view(%linear_3, [2, 3, 2, 4])
      %transpose_2: f32[2, 2, 3, 4] = transpose(%view_2, 1, 2)
      %scaled_dot_product_attention: f32[2, 2, 3, 4] = scaled_dot_product_attention(%transpose, %transpose_1, %transpose_2)
      %transpose_3: f32[2, 3, 2, 4] = transpose(%scaled_dot_product_attention, 1, 2)
      %view_3: f32[2, 3, 8] = view(%transpose_3, [2, 3, 8])
      %linear_4: f32[2, 3, 8] = linear(%view_3, @blocks.0.attn1.to_out.weight, @blocks.0.attn1.to_out.bias)
      return %linear_4
    reuse:
      %clone_default: f32[2, 3, 8] = clone(&blocks.0.attn1.0, memory_format=torch.contiguous_format)
      return %clone_default
  }
  # blocks.0
  %add_1: f32[2, 3, 8] = add(%hidden_states, %getitem_2)
  # blocks.0.ff
  %linear_5: f32[2, 3, 8] = linear(%add_1, @blocks.0.ff.weight, @blocks.0.ff.bias)
  # blocks.0
  %relu: f32[2, 3, 8] = relu(%linear_5)
  %mul: f32[2, 3, 8] = mul(%relu, 1.0)
  %add_2: f32[2, 3, 8] = add(%add_1, %mul)
  # forward
  %mul_1: f32[2, 3, 8] = mul(%add_2, 1.0)
  return %mul_1 | &blocks.0.attn1.0 = %getitem_2
}""",
    )


def test_no_branch_gives_back_an_operand_or_a_value_twice() -> None:
    program = conditional(depth=2)
    for node in program.graph.nodes:
        if node.target is not COND:
            continue
        for arg in node.args[1:3]:
            side = program.module.get_submodule(arg.target)
            values = output_values(side.graph)
            assert len(values) == len(set(values))
            assert not set(values) & set(placeholders(side.graph))


def test_gates_inside_branches_are_conditions_as_well() -> None:
    inner = PAB[0]
    outer = Policy("run", Blocks(), Interval(3), HoldOutput())
    program = conditional([inner, outer], depth=2)
    text = format_program(program)
    assert text.count("cond ?run") == 1
    assert text.count("cond ?spatial") == 2
    assert not any(is_gate(node) for node in program.graph.nodes)


def test_is_idempotent() -> None:
    program = conditional()
    assert Conditional().run(program).edits == 0
