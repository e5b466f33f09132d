"""What a tiny model is, and how one is made.

The weights are seeded noise, so that no layer that diffusers initialises to zero hides
an attention from the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

Inputs = dict[str, Any]


def _unmoved(inputs: Inputs, step: int) -> Inputs:
    return inputs


@dataclass(frozen=True)
class TinyModel:
    """One transformer and how its pipeline calls it.

    Attributes:
        name: The model's name.
        build: Makes the module; `make` seeds it.
        latents: Shape of the latents.
        inputs: Forward arguments besides latents and timestep, from a generator.
        scheduler: Makes the scheduler of the pipeline.
        timestep: The timestep argument from the scheduler's timestep and the batch.
        current: The pipeline's ``current_timestep`` from the scheduler's timestep.
        kinds: Attention kinds the model has: spatial, temporal, cross.
        learned_sigma: Whether half of the output channels are a variance.
        at: The forward arguments at a step index, where they are not the same at all.
    """

    name: str
    build: Callable[[], nn.Module]
    latents: tuple[int, ...]
    inputs: Callable[[torch.Generator], Inputs]
    scheduler: Callable[[], Any] = FlowMatchEulerDiscreteScheduler
    timestep: Callable[[Tensor, int], Tensor] = lambda t, batch: t.expand(batch)
    current: Callable[[Tensor], float] = float
    kinds: tuple[str, ...] = ("spatial",)
    learned_sigma: bool = False
    at: Callable[[Inputs, int], Inputs] = _unmoved


def make(tiny: TinyModel, seed: int = 0) -> nn.Module:
    """The seeded module in eval mode, with noise for every weight."""
    torch.manual_seed(seed)
    module = tiny.build().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            scale = 0.3 if weight.ndim < 2 else (2.0 / weight.shape[-1]) ** 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return module


def first_inputs(tiny: TinyModel, timestep: float = 500.0, seed: int = 1) -> Inputs:
    """The arguments of one call."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(tiny.latents, generator=generator)
    time = tiny.timestep(torch.tensor(timestep), tiny.latents[0])
    return {"hidden_states": latents, "timestep": time, **tiny.inputs(generator)}


def randn(generator: torch.Generator, *shape: int) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=generator)
