"""Half: a predictor of the conditional half, seen from the full batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.predictors.base import Operands, Predictor, Tensors
from graphcache.policy.scalars import Scalar


@dataclass(frozen=True)
class ConditionalHalf:
    """Keep of a full batch what a predictor would keep of its conditional half.

    It is for the graph that runs on ``[unconditional, conditional]``, where everything
    is computed; its buffers are read by the graph of the conditional half.

    Args:
        predictor: The predictor of the conditional half.
    """

    predictor: Predictor

    @property
    def continues(self) -> bool:
        """As the predictor."""
        return self.predictor.continues

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The predictor's."""
        return self.predictor.scalars

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """The predictor's, for the second half of the outputs.

        Raises:
            PolicyError: If there are no halves.
        """
        return self.predictor.initial(_halves(outputs), _operands(operands))

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """What the predictor keeps of the second half."""
        given = _halves(outputs), _operands(operands)
        return self.predictor.update(*given, buffers, scalars)

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The prediction for both halves."""
        outputs, held = self.predictor.predict(_operands(operands), buffers, scalars)
        return [torch.cat([output, output]) for output in outputs], held


def _halves(values: Tensors) -> list[Tensor]:
    for value in values:
        if not value.ndim or value.shape[0] % 2:
            raise PolicyError(
                f"a batch of shape {tuple(value.shape)} is not an unconditional half "
                "and a conditional one"
            )
    return [value.chunk(2)[1] for value in values]


def _operands(values: Operands) -> list[Tensor | None]:
    return [None if value is None else value.chunk(2)[1] for value in values]
