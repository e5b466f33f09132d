"""A pass is a frozen dataclass with one method; the manager verifies what it leaves.

This one replaces `x * 1.0` by `x`. It runs on the program of a small module, once with
edits and once without, since passes are idempotent.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from graphcache.capture import capture
from graphcache.passes.dead_code import DeadCode
from graphcache.passes.manager import PassResult, run_passes
from graphcache.program import Program, Stage
from graphcache.signature import CallSignature


@dataclass(frozen=True)
class DropUnitFactors:
    """Replace a product with the plain number one by its other factor."""

    name: ClassVar[str] = "drop-unit-factors"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per product."""
        edited = program.copy()
        edits = 0
        for node in list(edited.graph.nodes):
            if node.target is torch.ops.aten.mul.Tensor and node.args[1] == 1.0:
                node.replace_all_uses_with(node.args[0])
                edited.graph.erase_node(node)
                edits += 1
        return PassResult(edited if edits else program, edits)


class Scaled(nn.Module):
    """Multiplies by one."""

    def forward(self, x: Tensor) -> Tensor:
        """f32[n] to f32[n]."""
        return (x + 1) * 1.0


call = CallSignature(Scaled().forward).bind((torch.zeros(3),), {})
before = capture(Scaled().eval(), call).program
after = run_passes(before, [DropUnitFactors(), DeadCode()])

print(before)
print(after)
print("edits the second time:", DropUnitFactors().run(after).edits)
