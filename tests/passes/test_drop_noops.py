"""drop-noops."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from graphcache.passes.drop_noops import DropNoops
from graphcache.passes.manager import run_passes
from tests.models import tiny
from tests.programs import ops, source


class Copies(nn.Module):
    """One copy that does nothing, one that changes the layout, one returned."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f32[3, 2] to two f32[2, 3]."""
        same = nn.functional.dropout(x, 0.5, training=False) + 1
        return same.transpose(0, 1).contiguous() * 2, x.clone()


def program() -> Any:
    return source(Copies().eval(), {"x": torch.zeros(3, 2)})


def test_removes_copies_that_change_nothing() -> None:
    result = DropNoops().run(program())
    assert ops(result.program) == ["add", "transpose", "clone", "mul", "clone"]
    assert result.edits == ops(program()).count("clone") - 2


def test_removes_the_assertions_of_casts() -> None:
    before = source(tiny(depth=1))
    after = DropNoops().run(before)
    assert "_assert_tensor_metadata" in ops(before)
    assert "_assert_tensor_metadata" not in ops(after.program)
    assert_expected_inline(str(after.edits), """1""")


def test_is_bitwise_and_idempotent() -> None:
    x = torch.randn(3, 2)
    edited = run_passes(program(), [DropNoops()])
    for got, want in zip(edited.module(x), Copies()(x), strict=True):
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
    assert DropNoops().run(edited).edits == 0
