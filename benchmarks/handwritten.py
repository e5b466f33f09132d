"""The ideal: CogVideoX steps as one would write them by hand for one schedule.

A reused step is the model's own forward with every attention replaced by the tensors
it returned before. A computed step is the plain model. Compiled with `torch.compile`,
and with nothing stored in between, the two bound what any cache of attention outputs
can reach without changing the rest of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.workload import Transformer

Cached = tuple[Tensor, Tensor]
"""What one attention returned: video f[b, n, width] and text f[b, m, width]."""

_HOOK = "pyramid_attention_broadcast"


class ReuseStep(nn.Module):
    """`CogVideoXTransformer3DModel.forward` without attention.

    Args:
        transformer: A CogVideoX 1.0 model; its layers are shared, not copied.
    """

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        cached: Sequence[Cached],
    ) -> tuple[Tensor]:
        """One step.

        Args:
            hidden_states: Latents, f[b, frames, channels, height, width].
            encoder_hidden_states: Prompt embeddings, f[b, m, features].
            timestep: i64[b], in the scheduler's units.
            cached: Outputs of every block's attention.

        Returns:
            The prediction, of the latents' shape.
        """
        model: Any = self.transformer
        embedding = model.time_proj(timestep).to(hidden_states.dtype)
        embedding = model.time_embedding(embedding, None)
        tokens = model.patch_embed(encoder_hidden_states, hidden_states)
        length = encoder_hidden_states.shape[1]
        text, video = tokens[:, :length], tokens[:, length:]
        for block, outputs in zip(model.transformer_blocks, cached, strict=True):
            video, text = _reuse_block(block, video, text, embedding, outputs)
        video = model.norm_out(model.norm_final(video), temb=embedding)
        patches = model.proj_out(video)
        return (_unpatchify(patches, hidden_states, model.config.patch_size),)


def _reuse_block(
    block: Any, video: Tensor, text: Tensor, embedding: Tensor, cached: Cached
) -> tuple[Tensor, Tensor]:
    _, _, gate, text_gate = block.norm1(video, text, embedding)
    video = video + gate * cached[0]
    text = text + text_gate * cached[1]
    normed, normed_text, gate, text_gate = block.norm2(video, text, embedding)
    length = text.shape[1]
    update = block.ff(torch.cat([normed_text, normed], dim=1))
    video = video + gate * update[:, length:]
    return video, text + text_gate * update[:, :length]


def _unpatchify(patches: Tensor, latents: Tensor, size: int) -> Tensor:
    batch, frames, _, height, width = latents.shape
    grid = patches.reshape(batch, frames, height // size, width // size, -1, size, size)
    return grid.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


def cached_outputs(hooked: Transformer) -> list[Cached]:
    """What diffusers' hooks hold after a computed step, block by block."""
    hooks = [
        block.attn1._diffusers_hook.get_hook(_HOOK)
        for block in hooked.transformer_blocks
    ]
    return [hook.state.cache for hook in hooks]


class IdealLoop:
    """The hand-written loop: one function where PAB computes, another where it reuses.

    The cached tensors are given once and never written, so neither function pays for
    keeping them; the results are not those of a real generation.

    Args:
        compute: The full step.
        reuse: A `ReuseStep`, or what compiles one.
        cached: Outputs of every block's attention.
        computes: Whether each step of a generation is computed.
    """

    def __init__(
        self,
        compute: Callable[..., tuple[Tensor]],
        reuse: Callable[..., tuple[Tensor]],
        cached: Sequence[Cached],
        computes: Sequence[bool],
    ) -> None:
        self.compute = compute
        self.reuse = reuse
        self.cached = list(cached)
        self.computes = tuple(computes)
        self.index = 0

    def reset(self) -> None:
        """Begin a generation."""
        self.index = 0

    def __call__(self, *, return_dict: bool, **inputs: Any) -> tuple[Tensor]:
        """One step of the loop."""
        computes = self.computes[self.index]
        self.index += 1
        if computes:
            return self.compute(**inputs, return_dict=return_dict)
        return self.reuse(**inputs, cached=self.cached)
