"""Linear: extrapolate from the last two outputs, or from what was last added."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.checks import is_number
from graphcache.policy.predictors.base import Operands, Tensors
from graphcache.policy.predictors.residual import residuals, restored
from graphcache.policy.scalars import STEP, Scalar


@dataclass(frozen=True)
class LinearExtrapolation:
    """Go on from the last two outputs by a part of their difference.

    ``b + (b - a) * weight`` for outputs ``a`` then ``b``. What is predicted becomes the
    latest output itself, as in FasterCache (Lv et al., arXiv 2410.19355), whose
    predictor of attention this is.

    Buffers: per output the last two of them.

    Args:
        weight: The part, the same at every step or a number of the step.

    Raises:
        PolicyError: If the weight is not a finite number.
    """

    weight: Scalar | float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.weight, Scalar):
            return
        if not is_number(self.weight) or not math.isfinite(self.weight):
            raise PolicyError(
                "the weight of an extrapolation is a finite number or a Scalar, not "
                f"{self.weight!r}"
            )

    @property
    def continues(self) -> bool:
        """It does not read the streams."""
        return False

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The step, and the weight if it changes with it."""
        return (STEP, self.weight) if isinstance(self.weight, Scalar) else (STEP,)

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """Two buffers per output."""
        return [held for output in outputs for held in (output, output)]

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """The latest output takes the place of the older one."""
        updated: list[Tensor] = []
        for output, (_, latest) in zip(outputs, _pairs(buffers), strict=True):
            updated += [_previous(latest, output, scalars[0]), output]
        return updated

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The extrapolations, and they as the latest outputs."""
        weight = scalars[1] if isinstance(self.weight, Scalar) else self.weight
        outputs, held = [], []
        for older, latest in _pairs(buffers):
            predicted = latest + (latest - older) * weight
            outputs.append(predicted)
            held += [latest, predicted]
        return outputs, held


@dataclass(frozen=True)
class LinearResidual:
    """Go on from what the region added at the last two computed steps, in a line.

    ``r2 + (r2 - r1) * (s - s2) / (s2 - s1)`` is added to each stream at step ``s``, for
    ``r1`` and ``r2`` added at ``s1`` and ``s2``. An output that continues no stream is
    extrapolated itself. The predictor of SeaCache (arXiv 2602.18993).

    Buffers: per output the last two of what was added, and a clock: their two steps.
    """

    @property
    def continues(self) -> bool:
        """It reads the streams."""
        return True

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The step."""
        return (STEP,)

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """Two buffers per output, and the clock."""
        added = residuals(outputs, operands)
        clock = torch.zeros(2, dtype=torch.float64, device=outputs[0].device)
        return [*(held for value in added for held in (value, value)), clock]

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """What was just added takes the place of what was before it."""
        (step,), (*history, clock) = scalars, buffers
        updated: list[Tensor] = []
        added = residuals(outputs, operands)
        for value, (_, latest) in zip(added, _pairs(history), strict=True):
            updated += [_previous(latest, value, step), value]
        # At the first step any other step will do: there is no difference to divide.
        before = _previous(clock[1], step - 1.0, step)
        return [*updated, torch.stack([before, step])]

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The streams with the extrapolations added; the history stays."""
        *history, clock = buffers
        weight = (scalars[0] - clock[1]) / (clock[1] - clock[0])
        added = [
            latest + (latest - older) * weight for older, latest in _pairs(history)
        ]
        return restored(added, operands), buffers


def _pairs(buffers: Tensors) -> list[Tensors]:
    return [buffers[i : i + 2] for i in range(0, len(buffers), 2)]


def _previous(latest: Tensor, value: Tensor, step: Tensor) -> Tensor:
    """The latest of the history, or the value itself at the first step of a stream.

    A region is computed there, and only there its buffers hold nothing.
    """
    return torch.where(step == 0, value, latest)
