"""Times: what a call says of where the loop is, as numbers on the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FEW = 64
"""So many numbers are read one by one; of more, the device works out two."""


@dataclass(frozen=True)
class StepContext:
    """What `cache_context` says of the calls inside it.

    Attributes:
        name: Name of the stream, such as ``"cond"``.
        step_index: Index of the step in the loop.
        num_inference_steps: Steps of the loop.
        timestep: Timestep in the scheduler's units.
        sigma: Noise level.
    """

    name: str
    step_index: int | None = None
    num_inference_steps: int | None = None
    timestep: Any = None
    sigma: float | None = None


class Reading(NamedTuple):
    """Timesteps of one call.

    Attributes:
        value: The largest of them.
        mean: Their mean: it falls at every step, even where frames take turns.
        least: The smallest that is not 0; 0 if there is none.
        frames: How many there are for one sample.
    """

    value: float
    mean: float
    least: float
    frames: int = 1

    def scaled(self, scale: float) -> Reading:
        """The timesteps in other units."""
        return Reading(
            self.value * scale, self.mean * scale, self.least * scale, self.frames
        )


class Time(NamedTuple):
    """When a call is.

    Attributes:
        value: The timestep; None if nobody tells it. Of several, the largest: frames
            that are given have one of their own, 0, without noise.
        argued: Whether the module's argument says so, which may count up.
        mean: The mean of several; None where there is one.
        least: The smallest that is not 0.
        frames: How many there are for one sample.
    """

    value: float | None
    argued: bool = False
    mean: float | None = None
    least: float | None = None
    frames: int = 1

    @property
    def progress(self) -> float | None:
        """What goes one way as the loop goes on."""
        return self.value if self.mean is None else self.mean

    @staticmethod
    def of_argument(reading: Reading) -> Time:
        """The time that the module's argument tells."""
        mean = None if reading.frames == 1 else reading.mean
        return Time(reading.value, True, mean, reading.least, reading.frames)


Own = Callable[[], Time]
"""Asks the callback, else reads the argument, and that once a call at most."""


def read(value: Any) -> Reading:
    """Timesteps on the host, by one read of the device.

    Args:
        value: A number, or a tensor of any shape with the samples first.
    """
    if not isinstance(value, Tensor):
        number = float(value)
        return Reading(number, number, number)
    if value.numel() == 1:
        number = float(value)
        return Reading(number, number, number)
    frames = value.shape[1:].numel() if value.ndim > 1 else 1
    if value.numel() > _FEW:
        wide = value.to(torch.float64)
        noisy = wide.masked_fill(wide == 0, torch.inf)
        numbers = torch.stack([wide.max(), wide.mean(), noisy.min()]).tolist()
        largest, mean, least = numbers
        return Reading(largest, mean, least if math.isfinite(least) else 0.0, frames)
    numbers = [float(number) for number in value.flatten().tolist()]
    least = min(filter(None, numbers), default=0.0)
    return Reading(max(numbers), sum(numbers) / len(numbers), least, frames)
