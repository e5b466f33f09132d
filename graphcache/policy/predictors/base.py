"""What a gate needs of a predictor.

A predictor is a pair of small functions over tensors, traced into the branches of a
gate: `update` runs after the region and returns the new buffers, `predict` runs
instead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from graphcache.policy.scalars import Scalar

Tensors = Sequence[Tensor]
Operands = Sequence[Tensor | None]


class Predictor(Protocol):
    """A stand-in for a region; its functions must be traceable and pure."""

    @property
    def continues(self) -> bool:
        """Whether it reads, per result, the value of its stream before the region."""
        ...

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """Numbers that the functions read, in order."""
        ...

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """Example buffers for a region with these outputs: their shapes and dtypes.

        The buffers start as zeros.
        """
        ...

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """The buffers after a computed step.

        Args:
            outputs: What the region computed.
            operands: If it `continues`, per output the value of its stream before the
                region, or None where there is none; empty otherwise.
            buffers: The gate's buffers before the step; at the first step of a stream
                they hold zeros.
            scalars: 0-dim f64 tensors.
        """
        ...

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The stand-in outputs and the buffers after a reused step."""
        ...


class Plain:
    """A predictor that reads neither the streams nor any scalar."""

    @property
    def continues(self) -> bool:
        """It does not read the streams."""
        return False

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """It reads none."""
        return ()
