"""What the catalogue holds of one transformer class, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """One transformer class, built tiny, and the arguments of one call.

    Attributes:
        name: The class's name in diffusers.
        build: Makes the module; `build` of this file seeds it.
        inputs: Keyword arguments of one call without ``return_dict``, tensors drawn
            from the generator.
        note: Why, where something is special.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], dict[str, Any]]
    note: str = ""


def build(entry: Entry, seed: int = 0) -> nn.Module:
    """The seeded module in eval mode, with noise for every weight.

    No layer that diffusers initialises to zero may hide what feeds it.
    """
    torch.manual_seed(seed)
    module = entry.build().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(_scale(weight) * noise)
    return module


def _scale(weight: torch.Tensor) -> float:
    """A deviation that keeps activations of the order of one."""
    if weight.ndim < 2:
        return 0.3
    return float((2.0 / weight[0].numel()) ** 0.5)
