"""specialize."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphcache import VerifyError, pyramid_attention_broadcast
from graphcache.passes.manager import run_passes
from graphcache.passes.specialize import Specialize
from graphcache.program import InputKind, Stage
from tests.models import TinyAttention, tiny
from tests.programs import cached, lowered, ops, source

PAB = pyramid_attention_broadcast(spatial=2)


def test_compute_is_the_source_and_stores() -> None:
    program = lowered(tiny(), (True,), PAB)
    assert program.stage is Stage.LOWERED
    wanted = [op for op in ops(source(tiny())) if op != "_assert_tensor_metadata"]
    assert ops(program) == wanted
    assert program.stores == ("blocks.0.attn1.0", "blocks.1.attn1.0")
    assert program.inputs_of(InputKind.BUFFER) == ()


def test_reuse_reads_buffers_and_stores_nothing() -> None:
    program = lowered(tiny(), (False,), PAB)
    assert ops(program) == ["add", "linear", "relu", "mul", "add"] * 2 + ["mul"]
    assert program.stores == ()
    assert len(program.inputs_of(InputKind.BUFFER)) == 2
    assert not any("attn1" in e.target for e in program.inputs_of(InputKind.WEIGHT))


def test_kinds_are_specialised_apart() -> None:
    both = pyramid_attention_broadcast(spatial=2, cross=3)
    program = lowered(tiny(depth=1, cross=True), (True, False), both)
    assert ops(program).count("scaled_dot_product_attention") == 1
    assert program.stores == ("blocks.0.attn1.0",)
    reads = [entry.target for entry in program.inputs_of(InputKind.BUFFER)]
    assert reads == ["blocks.0.attn2.0"]


class Bare(nn.Module):
    """Returns what attention returned."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = TinyAttention()

    def forward(self, x: Tensor) -> Tensor:
        """f32[1, 2, 8] to f32[1, 2, 8]."""
        return self.attn(x)[:, :1]


@pytest.mark.parametrize("computes", [True, False])
def test_the_caller_never_gets_a_buffer(computes: bool) -> None:
    passes = cached.__globals__["rewrite_pipeline"](PAB)
    program = run_passes(source(Bare().eval(), {"x": torch.zeros(1, 2, 8)}), passes)
    program = run_passes(program, [Specialize((computes,))])
    assert ops(program)[-1] == "clone"


def test_a_signature_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        Specialize((True, False)).run(cached(tiny(), PAB))


def test_a_source_program_cannot_be_specialised() -> None:
    with pytest.raises(VerifyError, match="specialize cannot run on a source"):
        run_passes(source(tiny()), [Specialize((True,))])


def test_is_idempotent() -> None:
    assert Specialize((True,)).run(lowered(tiny(), (True,), PAB)).edits == 0
