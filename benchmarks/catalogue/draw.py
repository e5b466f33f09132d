"""What the arguments of the entries are drawn with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
Rng = torch.Generator


def randn(rng: Rng, *shape: int) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=rng)


def rotary(rng: Rng, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of one angle per token and channel."""
    angles = randn(rng, tokens, width)
    return angles.cos(), angles.sin()


def grid(*sizes: int) -> Tensor:
    """Positions on a grid, one row per token, as Flux and its kin take them."""
    return torch.cartesian_prod(*[torch.arange(size) for size in sizes]).float()
