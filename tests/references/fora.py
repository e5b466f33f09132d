"""FORA: every attention and every feed-forward is computed each N-th step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import nn

from tests.parts import attentions, blocks, feed_forwards
from tests.references.holding import holding
from tests.references.patching import Log


def layers(module: nn.Module) -> list[str]:
    """Paths of the attentions and feed-forwards inside the root's blocks."""
    inside = tuple(f"{path}." for path in blocks(module))
    return [
        path
        for path in (*attentions(module), *feed_forwards(module))
        if path.startswith(inside)
    ]


def fora(
    module: nn.Module, every: int, paths: Sequence[str] | None = None
) -> AbstractContextManager[Log]:
    """Compute the layers at steps 0, N, 2N and so on, and hold their outputs."""
    chosen = layers(module) if paths is None else paths
    return holding(module, chosen, lambda path, step: step % every == 0)
