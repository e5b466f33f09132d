"""Taylor: forecast an output from its own past.

Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with
TaylorSeers", arXiv 2503.06923: the divided differences of the last computed steps stand
for derivatives, and the steps between are predicted by the Taylor expansion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graphcache.policy.checks import check_count, check_float_dtype
from graphcache.policy.predictors.base import Operands, Tensors
from graphcache.policy.predictors.residual import residuals, restored
from graphcache.policy.scalars import STEP, Scalar


@dataclass(frozen=True)
class Taylor:
    """Expand each output around its last computed step.

    The factors are divided differences over the gap between the last two computed
    steps, in the order of operations of diffusers, whose numbers they equal bit for bit
    in fp32 on the CPU. Those for which too few steps were computed are zero.

    Buffers: per output its factors, `order` + 1 of them, and for all outputs together a
    clock: the step of the last update, and how many there were.

    Args:
        order: The highest derivative; 0 holds the output.
        dtype: What the factors are rounded to; None is the dtype of the output. The
            output itself is stored in its own dtype all the same, and differences in
            this one.

    Raises:
        PolicyError: If the order is not an integer from 0, or the dtype not a
            floating-point one.
    """

    order: int = 1
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("the order of a Taylor expansion", self.order, 0)
        check_float_dtype("the dtype of Taylor factors", self.dtype)

    @property
    def continues(self) -> bool:
        """It does not read the streams."""
        return False

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The step."""
        return (STEP,)

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """The factors of every output, and the clock."""
        buffers: list[Tensor] = []
        for output in outputs:
            buffers += self._stored([output] * (self.order + 1))
        clock = torch.zeros(2, dtype=torch.float64, device=outputs[0].device)
        return [*buffers, clock]

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """The factors at this step."""
        (step,), clock = scalars, buffers[-1]
        gap = step - clock[0]
        # A difference that cannot be taken yet is divided by infinity: it is zero.
        gaps = [gap.masked_fill(clock[1] <= j, torch.inf) for j in range(self.order)]
        updated: list[Tensor] = []
        for output, held in zip(outputs, self._by_output(buffers), strict=True):
            factors = [output]
            for before, divisor in zip(held, gaps, strict=False):
                change = factors[-1] - before.to(output.dtype)
                factors.append(change / divisor)
            updated += self._stored(factors)
        return [*updated, torch.stack([step, clock[1] + 1.0])]

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The expansions at this step; the factors stay."""
        elapsed = scalars[0] - buffers[-1][0]
        weights = [elapsed**j / math.factorial(j) for j in range(1, self.order + 1)]
        outputs = []
        for value, *factors in self._by_output(buffers):
            predicted = value
            for factor, weight in zip(factors, weights, strict=True):
                predicted = predicted + factor.to(value.dtype) * weight
            outputs.append(predicted)
        return outputs, buffers

    def _by_output(self, buffers: Tensors) -> list[Tensors]:
        size = self.order + 1
        return [buffers[i : i + size] for i in range(0, len(buffers) - 1, size)]

    def _stored(self, factors: Tensors) -> list[Tensor]:
        """The factors as they are kept: what is predicted has the output's dtype."""
        if self.dtype is None:
            return list(factors)
        output, *differences = (factor.to(self.dtype) for factor in factors)
        return [output.to(factors[0].dtype), *differences]


@dataclass(frozen=True)
class TaylorResidual:
    """Expand what the region adds to each stream, and add that.

    An output that continues no stream is expanded itself. The forecast of DBCache
    (cache-dit).

    Args:
        order: As in `Taylor`.
        dtype: As in `Taylor`.

    Raises:
        PolicyError: As `Taylor`.
    """

    order: int = 1
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        _ = self._taylor

    @property
    def _taylor(self) -> Taylor:
        return Taylor(self.order, self.dtype)

    @property
    def continues(self) -> bool:
        """It reads the streams."""
        return True

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The step."""
        return self._taylor.scalars

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """The factors of what is added to every stream, and the clock."""
        return self._taylor.initial(residuals(outputs, operands), ())

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """The factors at this step."""
        added = residuals(outputs, operands)
        return self._taylor.update(added, (), buffers, scalars)

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The streams with what is forecast for them; the factors stay."""
        added, held = self._taylor.predict((), buffers, scalars)
        return restored(added, operands), held
