"""Parts of a transformer by the names and types that tests tell them by.

Nothing here asks the package under test or the registries of diffusers.
"""

from __future__ import annotations

import re

from torch import nn

BLOCK = re.compile(r"[a-z_]*(blocks|layers)\.\d+")
FEED_FORWARD = re.compile(r"(ff|ffn)(_context)?")


def attentions(module: nn.Module) -> list[str]:
    """Paths of all attention modules."""
    return [
        path
        for path, part in module.named_modules()
        if hasattr(part, "processor") or hasattr(part, "to_v")
    ]


def feed_forwards(module: nn.Module) -> list[str]:
    """Paths of all feed-forward modules."""
    return [
        path
        for path, part in module.named_modules()
        if "FeedForward" in type(part).__name__ or FEED_FORWARD.fullmatch(name_of(path))
    ]


def blocks(module: nn.Module) -> list[str]:
    """Paths of the blocks in lists of the root, side branches among them."""
    return [path for path, _ in module.named_modules() if BLOCK.fullmatch(path)]


def trunk(module: nn.Module) -> list[str]:
    """Paths of the blocks that the hidden states pass, in the order of passing."""
    found = [path for path in blocks(module) if not path.startswith("vace_")]
    if any(path.startswith("temporal_") for path in found):
        # Latte goes through its two lists in turn.
        found.sort(key=lambda path: (int(name_of(path)), path.startswith("temporal_")))
    return found


def is_cross(path: str, part: nn.Module) -> bool:
    """Whether an attention's keys are those of another sequence."""
    return bool(getattr(part, "is_cross_attention", name_of(path) == "attn2"))


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rpartition(".")[2]
