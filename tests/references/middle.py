"""A run of blocks that can be replaced by what it added when it last ran.

It holds the difference between what leaves the last block and what entered the first,
on every stream. So a residual that the model injects between two of the blocks
(ControlNet, hints of VACE) is held with it and counts once, one behind the last is that
of the step, and nothing is counted twice. What is injected behind a head belongs to the
blocks that follow it: what enters them is then what left the head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tests.references.patching import Forward, Log, Wrapper, replaced

Streams = tuple[Tensor | None, ...]
Decide = Callable[[tuple[Any, ...], dict[str, Any]], bool]

HIDDEN_FIRST = {
    "CogVideoXBlock",
    "CogView4TransformerBlock",
    "HunyuanVideoSingleTransformerBlock",
    "HunyuanVideoTransformerBlock",
    "MochiTransformerBlock",
}
ENCODER_FIRST = {
    "Flux2TransformerBlock",
    "FluxSingleTransformerBlock",
    "FluxTransformerBlock",
    "JointTransformerBlock",
    "QwenImageTransformerBlock",
}


def has_two(block: nn.Module) -> bool:
    """Whether a block returns the text's stream beside the hidden one."""
    return type(block).__name__ in HIDDEN_FIRST | ENCODER_FIRST


def entering(block: nn.Module, args: Any, kwargs: Any) -> Streams:
    """The streams that a block gets: hidden, then the text's if it returns that too."""
    signature = inspect.signature(type(block).forward)
    given = signature.bind_partial(block, *args, **kwargs).arguments
    hidden = given.get("hidden_states", given.get("hidden"))
    return (hidden, given["encoder_hidden_states"]) if has_two(block) else (hidden,)


def leaving(block: nn.Module, outputs: Any) -> Streams:
    """The streams in a block's outputs, hidden first."""
    streams: Streams = outputs if has_two(block) else (outputs,)
    return streams[::-1] if type(block).__name__ in ENCODER_FIRST else streams


def packed(block: nn.Module, streams: Streams) -> Any:
    """Streams as a block returns them."""
    if not has_two(block):
        return streams[0]
    return streams[::-1] if type(block).__name__ in ENCODER_FIRST else streams


class Middle:
    """The blocks, and what they added.

    Args:
        module: The transformer.
        paths: The blocks in the order in which they run.
        log: Gets the blocks that run.
        decide: Asked at the first block, with its arguments, whether to compute. Where
            there is nothing to reuse the blocks run whatever it says.
    """

    def __init__(
        self, module: nn.Module, paths: Sequence[str], log: Log, decide: Decide
    ) -> None:
        if not paths:
            raise ValueError("no block is left between head and tail")
        self.module, self.paths, self.log, self.decide = module, paths, log, decide
        self.computes = True
        self.entered: Streams = ()
        self.follows_head = False
        self.added: Streams | None = None

    def enter(self, streams: Streams) -> None:
        """Say what left the head."""
        self.entered, self.follows_head = streams, True

    def replaced(self) -> AbstractContextManager[None]:
        """Take over the blocks' forwards."""
        return replaced(self.module, {path: self._wrapper(path) for path in self.paths})

    def _wrapper(self, path: str) -> Wrapper:
        block = self.module.get_submodule(path)

        def wrap(forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                streams = entering(block, args, kwargs)
                if path == self.paths[0]:
                    if not self.follows_head:
                        self.entered = streams
                    # Asked first: a decision may keep a record of its own.
                    self.computes = self.decide(args, kwargs) or self.added is None
                if self.computes:
                    self.log.ran(path)
                    outputs = forward(*args, **kwargs)
                else:
                    outputs = packed(block, streams)
                if path == self.paths[-1]:
                    outputs = self._leave(block, outputs)
                return outputs

            return run

        return wrap

    def _leave(self, block: nn.Module, outputs: Any) -> Any:
        left = leaving(block, outputs)
        entered = tuple(map(_laid_out, self._joined(len(left)), left))
        if self.computes:
            self.added = tuple(map(_minus, left, entered))
            return outputs
        assert self.added is not None
        return packed(block, tuple(map(_plus, entered, self.added)))

    def _joined(self, count: int) -> Streams:
        """What entered, as one sequence if the model joined two streams midway."""
        if len(self.entered) == count:
            return self.entered
        hidden, encoder = self.entered
        assert hidden is not None
        assert encoder is not None
        return (torch.cat([encoder, hidden], dim=1),)


def _laid_out(entered: Tensor | None, left: Tensor | None) -> Tensor | None:
    """What entered, by places as it left, where Latte's first list goes by frames."""
    if entered is None or left is None or entered.shape == left.shape:
        return entered
    if entered.ndim != 3 or entered.numel() != left.numel():
        return entered
    places, frames, _ = left.shape
    batch = entered.shape[0] // frames
    videos = entered.unflatten(0, (batch, frames)).transpose(1, 2)
    assert places == batch * videos.shape[1]
    return videos.flatten(0, 1)


def _minus(left: Tensor | None, entered: Tensor | None) -> Tensor | None:
    # The last block of SD3 ends the text's stream.
    if left is None or entered is None:
        return None
    if left.shape != entered.shape:
        # Latte's first list works on frames and its second on places.
        raise ValueError(f"{tuple(entered.shape)} enters, {tuple(left.shape)} leaves")
    return left - entered


def _plus(entered: Tensor | None, added: Tensor | None) -> Tensor | None:
    return None if entered is None or added is None else entered + added
