"""The text of programs is stable: this is what the goldens and dumps rest on."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline

from graphcache import pyramid_attention_broadcast
from graphcache.printer import format_diff, format_program
from graphcache.program import TensorType, dtype_name
from tests.models import tiny
from tests.programs import cached, lowered, source

PAB = pyramid_attention_broadcast(spatial=2)


def test_types() -> None:
    cpu = torch.device("cpu")
    assert str(TensorType((2, 64), torch.float32, cpu)) == "f32[2, 64]"
    assert str(TensorType((), torch.bool, cpu)) == "bool[]"
    assert TensorType((2, 64), torch.bfloat16, cpu).bytes == 256
    names = [torch.bfloat16, torch.int64, torch.uint8, torch.float16]
    assert list(map(dtype_name, names)) == ["bf16", "i64", "u8", "f16"]


def test_cached_program() -> None:
    assert_expected_inline(
        format_program(cached(tiny(depth=1), PAB)),
        """\
cached program {
  input %hidden_states: f32[2, 3, 8]
  input %encoder_hidden_states: f32[2, 4, 8]
  input %timestep: f32[2]
  input ?spatial: bool[]
  input &blocks.0.attn1.0: f32[2, 3, 8]
  region blocks.0: block
  region blocks.0.attn1: self attention gate spatial
  # blocks.0.attn1
  %getitem: f32[2, 3, 8], %getitem_1: f32[2, 3, 8] = gate ?spatial {
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
      return %linear_4, %linear_4
    reuse:
      return &blocks.0.attn1.0, &blocks.0.attn1.0
  }
  # blocks.0
  %add_1: f32[2, 3, 8] = add(%hidden_states, %getitem)
  # blocks.0.ff
  %linear_5: f32[2, 3, 8] = linear(%add_1, @blocks.0.ff.weight, @blocks.0.ff.bias)
  # blocks.0
  %relu: f32[2, 3, 8] = relu(%linear_5)
  %mul: f32[2, 3, 8] = mul(%relu, 1.0)
  %add_2: f32[2, 3, 8] = add(%add_1, %mul)
  # forward
  %mul_1: f32[2, 3, 8] = mul(%add_2, 1.0)
  return %mul_1 | &blocks.0.attn1.0 = %getitem_1
}""",
    )


def test_reuse_variant() -> None:
    assert_expected_inline(
        format_program(lowered(tiny(depth=1), (False,), PAB)),
        """\
lowered program {
  input %hidden_states: f32[2, 3, 8]
  input &blocks.0.attn1.0: f32[2, 3, 8]
  region blocks.0: block
  region blocks.0.attn1: self attention gate spatial
  # blocks.0
  %add_1: f32[2, 3, 8] = add(%hidden_states, &blocks.0.attn1.0)
  # blocks.0.ff
  %linear_5: f32[2, 3, 8] = linear(%add_1, @blocks.0.ff.weight, @blocks.0.ff.bias)
  # blocks.0
  %relu: f32[2, 3, 8] = relu(%linear_5)
  %mul: f32[2, 3, 8] = mul(%relu, 1.0)
  %add_2: f32[2, 3, 8] = add(%add_1, %mul)
  # forward
  %mul_1: f32[2, 3, 8] = mul(%add_2, 1.0)
  return %mul_1
}""",
    )


def test_one_module_alone() -> None:
    assert_expected_inline(
        format_program(source(tiny(depth=2)), within="blocks.1.ff"),
        """\
source program {
  input %hidden_states: f32[2, 3, 8]
  input %encoder_hidden_states: f32[2, 4, 8]
  input %timestep: f32[2]
  # blocks.1.ff
  %linear_10: f32[2, 3, 8] = linear(%add_4, @blocks.1.ff.weight, @blocks.1.ff.bias)
}""",
    )


def test_text_is_the_same_in_two_captures() -> None:
    texts = [format_program(cached(tiny(seed), PAB)) for seed in (0, 1)]
    assert texts[0] == texts[1]


def test_diff_is_one_line() -> None:
    before, after = source(tiny(depth=1)), cached(tiny(depth=1), PAB)
    assert_expected_inline(
        format_diff(before, after, 5),
        """5 edits; nodes 26 -> 9; _assert_tensor_metadata -1; add -1; div -1; getitem +2; graphcache_gate +1; layer_norm -1; linear -5; scaled_dot_product_attention -1; transpose -4; unsqueeze -2; view -4""",
    )
