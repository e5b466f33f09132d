"""Values for the inputs of a program, and how far two runs are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphcache.program import InputKind, Program, fake_value, placeholders


def values_of(program: Program, seed: int = 3) -> list[Tensor]:
    """Seeded values for every input of a program, on the device that it is for."""
    generator = torch.Generator().manual_seed(seed)
    nodes = placeholders(program.graph)

    def value(kind: InputKind, fake: Tensor) -> Tensor:
        if not (fake.dtype.is_floating_point or fake.dtype.is_complex):
            return torch.ones(fake.shape, dtype=fake.dtype, device=fake.device)
        noise = torch.randn(fake.shape, generator=generator, dtype=torch.float32)
        if kind is InputKind.SCALAR:
            # Steps, weights and noise levels are positive.
            noise = noise.abs()
        scale = 0.3 if kind is InputKind.WEIGHT else 1.0
        return (scale * noise).to(fake.device, fake.dtype)

    return [
        value(entry.kind, fake_value(node))
        for entry, node in zip(program.inputs, nodes, strict=True)
    ]


def worst_difference(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest relative difference between two runs of one type."""
    found = 0.0
    for left, right in zip(got, want, strict=True):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        scale = right.abs().nan_to_num(posinf=0.0).max().clamp(1e-6)
        found = max(found, float((left - right).nan_to_num().abs().max() / scale))
    return found
