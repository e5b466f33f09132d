"""Hold: reuse what the last computed step gave, or what it added."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphcache.policy.predictors.base import Operands, Plain, Tensors
from graphcache.policy.predictors.residual import residuals, restored


@dataclass(frozen=True)
class HoldOutput(Plain):
    """Reuse the outputs of the last computed step as they are.

    The predictor of Pyramid Attention Broadcast (arXiv 2408.12588) and FORA (arXiv
    2407.01425).
    """

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """Keep the outputs."""
        return outputs

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Give them back, and keep them."""
        return buffers, buffers

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """One buffer per output, of its shape and dtype."""
        return outputs


@dataclass(frozen=True)
class HoldResidual(Plain):
    """Add to each stream what the region added at the last computed step.

    An output that continues no stream is held as it is. The predictor of first-block
    caching (ParaAttention), TeaCache (arXiv 2411.19108) and MagCache (arXiv
    2506.09045).
    """

    @property
    def continues(self) -> bool:
        """It reads the streams."""
        return True

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """One buffer per output, of its shape and dtype."""
        return residuals(outputs, operands)

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """Keep the differences."""
        return residuals(outputs, operands)

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Add them again, and keep them."""
        return restored(buffers, operands), buffers


@dataclass(frozen=True)
class Zeros(Plain):
    """Zeros in place of the outputs.

    For a region whose outputs only lead to others that are predicted themselves: a
    module that diffusers' TaylorSeer config names in ``skip_predict_identifiers``. The
    buffers only tell the shapes; nothing reads their values.
    """

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """One buffer per output, of its shape and dtype."""
        return outputs

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """Nothing to keep."""
        return buffers

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Zeros, of shapes that are known when this is traced."""
        zeros = [
            torch.zeros(held.shape, dtype=held.dtype, device=held.device)
            for held in buffers
        ]
        return zeros, buffers
