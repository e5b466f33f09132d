"""The least that diffusers' hooks can be put on: blocks that add what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn


class Adding(nn.Module):
    """A block: adds to the stream what its list holds for the step."""

    def __init__(self, owner: Stack, added: Sequence[Tensor]) -> None:
        super().__init__()
        self.added = added
        self.ran: list[int] = []
        self._owner = [owner]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The stream."""
        step = self._owner[0].step
        self.ran.append(step)
        return hidden_states + self.added[step]


TransformerBlockRegistry.register(
    Adding, TransformerBlockMetadata(return_hidden_states_index=0)
)


class Stack(CacheMixin, nn.Module):
    """Blocks in a row.

    Args:
        added: Per block, what it adds at each step.
    """

    def __init__(self, *added: Sequence[Tensor]) -> None:
        super().__init__()
        self.step = 0
        self.blocks = nn.ModuleList(Adding(self, values) for values in added)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The stream after the blocks."""
        for block in self.blocks:
            hidden_states = block(hidden_states)
        self.step += 1
        return hidden_states


def run(
    stack: Stack, apply: Callable[[nn.Module], None], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], list[int]]:
    """Outputs of a loop under a hook, and the steps at which the last block ran."""
    HookRegistry.check_if_exists_or_initialize(stack)
    apply(stack)
    outputs = []
    with torch.no_grad(), stack.cache_context("cond"):
        for value in inputs:
            outputs.append(stack(value))
    return outputs, stack.blocks[-1].ran
