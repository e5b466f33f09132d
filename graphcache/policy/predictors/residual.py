"""What a region adds to the streams that go through it."""

from __future__ import annotations

from torch import Tensor

from graphcache.policy.predictors.base import Operands, Tensors


def residuals(outputs: Tensors, operands: Operands) -> list[Tensor]:
    """What was added to each stream; an output that continues none, as it is."""
    return [
        output if operand is None else output - operand
        for output, operand in zip(outputs, operands, strict=True)
    ]


def restored(added: Tensors, operands: Operands) -> list[Tensor]:
    """The streams with what is added to them."""
    return [
        value if operand is None else operand + value
        for value, operand in zip(added, operands, strict=True)
    ]
