"""Accumulated change from step to step: TeaCache."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.checks import is_number
from graphcache.policy.indicators.base import Tensors
from graphcache.policy.indicators.relative import relative_change
from graphcache.policy.probes import ModulatedInput, Probe
from graphcache.policy.scalars import Scalar


@dataclass(frozen=True)
class AccumulatedChange:
    """The rescaled changes of a value since the last computed step, added up.

    The indicator of TeaCache (Liu et al., arXiv 2411.19108): the relative L1 change
    from the step before goes through a polynomial that was fitted to the model, and
    the sum starts over when a step is computed. Worked out in fp32.

    Args:
        probe: Observes one value.
        coefficients: Of the polynomial, highest power first; (1, 0) leaves the change
            as it is.
        absolute: Whether to add the polynomial's absolute value: fits dip below zero.

    Raises:
        PolicyError: If there are no coefficients or one is not finite.
    """

    probe: Probe = field(default_factory=ModulatedInput)
    coefficients: tuple[float, ...] = (1.0, 0.0)
    absolute: bool = False

    def __post_init__(self) -> None:
        given = tuple(self.coefficients)
        numbers = all(is_number(c) and math.isfinite(c) for c in given)
        if not given or not numbers:
            raise PolicyError(
                "the coefficients of a polynomial are finite numbers, highest power "
                f"first, not {self.coefficients!r}: (1, 0) leaves the change as it is"
            )
        object.__setattr__(self, "coefficients", tuple(map(float, given)))

    @property
    def inclusive(self) -> bool:
        """A sum equal to the threshold computes."""
        return True

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """It reads none."""
        return ()

    def initial(self, observed: Tensors) -> Tensors:
        """The value of the step before, and the sum."""
        (value,) = observed
        return [value, torch.zeros((), dtype=torch.float32, device=value.device)]

    def measure(self, observed: Tensors, buffers: Tensors, scalars: Tensors) -> Tensors:
        """The sum with this step's change, and the value."""
        (value,), (before, total) = observed, buffers
        change = horner(
            self.coefficients, relative_change(value.float(), before.float())
        )
        return [total + (change.abs() if self.absolute else change), value]

    def update(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """The sum starts over."""
        total, value = measured
        return [value, torch.zeros_like(total)]

    def carry(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """The sum goes on."""
        total, value = measured
        return [value, total]


def horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """The polynomial at `x`, highest power first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
