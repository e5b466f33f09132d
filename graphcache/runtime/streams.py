"""Streams: independent passes through the loop, each with buffers of its own.

The conditional and the unconditional calls of classifier-free guidance are two
streams; they never share state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphcache.program import Buffer


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
        timestep: Timestep of the latest call.
        step_index: Step index of the latest call, if the context gave one.
        begin: Where in the scheduler's timesteps the loop began, if that is counted.
        owner: What the buffers belong to; buffers of another capture are never read.
        buffers: The cache, by buffer name.
    """

    name: str
    index: int = 0
    timestep: float | None = None
    step_index: int | None = None
    begin: int | None = None
    owner: object = None
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget everything; the next call computes."""
        self.index = 0
        self.timestep = self.step_index = self.begin = self.owner = None
        self.buffers.clear()

    def adopt(self, owner: object) -> None:
        """Start over if the buffers belong to another capture."""
        if self.owner is not owner:
            self.buffers.clear()
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
