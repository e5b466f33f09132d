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
from graphcache.runtime.idle import Story
from graphcache.runtime.progress import Progress
from graphcache.runtime.prompts import Prompt


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
    }
    return sum(storages.values())


@dataclass(eq=False)
class Stream:
    """The state of one stream.

    Attributes:
        name: What the caller's context calls it, or its place in the order of calls.
        index: Calls since the reset.
        begun: The index at which the buffers were last empty.
        timestep: Timestep of the latest call, falling as the noise does.
        position: Index of the latest call in the schedule, if that is known.
        count: Steps of the schedule, if that is known.
        sigma: Noise level of the latest call, if that is known.
        scheduled: As `position`, by the attached scheduler whatever a context says.
        progress: How far its loop has come; the clock keeps it.
        owner: What the buffers belong to; buffers of another capture are never read.
        buffers: The cache, by buffer name.
        plans: Decisions known ahead of their steps, by predicate.
        prompt: What the latest call was given; None if that is not looked at.
        since: The step of the line at which it began, if no context names it.
        turn: The step of the line at which it was called last.
        latest: Which of all calls in the line was its latest.
        compared: How often the halves of its batch were compared.
        generation: Which generation of the request it began in.
        story: What happened since the reset.
    """

    name: str
    index: int = 0
    begun: int = 0
    timestep: float | None = None
    position: int | None = None
    count: int | None = None
    sigma: float | None = None
    scheduled: int | None = None
    progress: Progress = field(default_factory=Progress)
    owner: object = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    prompt: Prompt | None = None
    since: int = 0
    turn: int = -1
    latest: int = 0
    compared: int = 0
    generation: int = 0
    story: Story = field(default_factory=Story)

    @property
    def step(self) -> Step:
        """Where the loop is."""
        return Step(
            self.index,
            self.timestep,
            self.position,
            self.count,
            self.sigma,
            self.begun,
        )

    @property
    def has_prompt(self) -> bool:
        """Whether its latest call was given a prompt."""
        return self.prompt is not None and self.prompt.known

    def held(self) -> list[Tensor]:
        """The buffers, as they are while another thread may replace them."""
        return [*self.buffers.copy().values()]

    @property
    def is_amid(self) -> bool:
        """Whether its loop has begun and is not known to be over."""
        return self.index > 0 and (self.count is None or self.index < self.count)

    def reset(self) -> None:
        """Forget the state; the next call computes."""
        self.let_go()
        self.index = self.begun = 0
        self.prompt = None
        self.compared = 0
        self.story = Story()

    def let_go(self, why: str | None = None) -> None:
        """Empty the buffers: the next call computes, at the place where the loop is.

        Args:
            why: What a warning says, if nothing is ever reused.
        """
        self.owner = None
        self.buffers.clear()
        self.plans.clear()
        if why is not None:
            self.story.why = why

    def adopt(self, owner: object) -> None:
        """Empty the buffers if they belong to another capture.

        The calls are counted on: the loop is where it is, whatever runs its steps.
        """
        if self.owner is not owner:
            self.let_go()
            self.begun = self.index
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
