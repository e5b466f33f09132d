"""Predictors: what stands in for a region when it is not computed.

A predictor is a pair of small functions over tensors, traced into the branches of a
gate: `update` runs after the region and returns the new buffers, `predict` runs
instead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Tensors = Sequence[Tensor]


class Predictor(Protocol):
    """What a gate needs of a predictor. Both functions must be traceable and pure."""

    def update(self, outputs: Tensors, buffers: Tensors) -> Tensors:
        """The buffers after a computed step.

        Args:
            outputs: What the region computed.
            buffers: The gate's buffers before the step; at the first step of a stream
                they hold zeros.
        """
        ...

    def predict(self, buffers: Tensors) -> tuple[Tensors, Tensors]:
        """The stand-in outputs and the buffers after a reused step.

        Args:
            buffers: The gate's buffers before the step.
        """
        ...

    def initial(self, outputs: Tensors) -> Tensors:
        """Example buffers for a region with these outputs: their shapes and dtypes."""
        ...


@dataclass(frozen=True)
class HoldOutput:
    """Reuse the outputs of the last computed step as they are.

    The predictor of Pyramid Attention Broadcast (arXiv 2408.12588) and FORA (arXiv
    2407.01425).
    """

    def update(self, outputs: Tensors, buffers: Tensors) -> Tensors:
        """Keep the outputs."""
        return outputs

    def predict(self, buffers: Tensors) -> tuple[Tensors, Tensors]:
        """Give them back, and keep them."""
        return buffers, buffers

    def initial(self, outputs: Tensors) -> Tensors:
        """One buffer per output, of its shape and dtype."""
        return outputs
