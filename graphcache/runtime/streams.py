"""Streams: independent passes through the loop, each with buffers of its own.

The conditional and the unconditional calls of classifier-free guidance are two
streams; they never share state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphcache.policy.decisions import Step
from graphcache.program import Buffer
from graphcache.runtime.progress import Progress


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
    }
    return sum(storages.values())


@dataclass
class Stream:
    """The state of one stream.

    Attributes:
        name: What the caller's context calls it, or its place in the order of calls.
        index: Calls since the reset.
        timestep: Timestep of the latest call, falling as the noise does.
        position: Index of the latest call in the schedule, if that is known.
        count: Steps of the schedule, if that is known.
        sigma: Noise level of the latest call, if that is known.
        scheduled: As `position`, by the attached scheduler whatever a context says.
        progress: How far its loop has come; the clock keeps it.
        owner: What the buffers belong to; buffers of another capture are never read.
        buffers: The cache, by buffer name.
        plans: Decisions known ahead of their steps, by predicate.
    """

    name: str
    index: int = 0
    timestep: float | None = None
    position: int | None = None
    count: int | None = None
    sigma: float | None = None
    scheduled: int | None = None
    progress: Progress = field(default_factory=Progress)
    owner: object = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> Step:
        """Where the loop is."""
        return Step(self.index, self.timestep, self.position, self.count, self.sigma)

    def reset(self) -> None:
        """Forget the state; the next call computes."""
        self.index = 0
        self.owner = None
        self.buffers.clear()
        self.plans.clear()

    def adopt(self, owner: object) -> None:
        """Start over if the buffers belong to another capture."""
        if self.owner is not owner:
            self.buffers.clear()
            self.plans.clear()
            self.index = 0
            self.owner = owner

    def read(self, buffers: Iterable[Buffer]) -> list[Tensor]:
        """The buffers' values; zeros for those never written."""
        return [
            self.buffers[buffer.name]
            if buffer.name in self.buffers
            else torch.zeros(
                buffer.type.shape, dtype=buffer.type.dtype, device=buffer.type.device
            )
            for buffer in buffers
        ]

    def release(self, names: Iterable[str]) -> None:
        """Free buffers that are about to be replaced."""
        for name in names:
            self.buffers.pop(name, None)
