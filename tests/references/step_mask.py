"""A mask of steps: one computes, zero reuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from tests.parts import trunk
from tests.references.holding import holding
from tests.references.middle import Middle
from tests.references.patching import Log, recording


def step_mask(
    module: nn.Module, masks: Mapping[str, Sequence[int]]
) -> AbstractContextManager[Log]:
    """Hold outputs of modules, each by a mask of its own."""
    return holding(module, masks, lambda path, step: bool(masks[path][step]))


@contextmanager
def trunk_mask(
    module: nn.Module, mask: Sequence[int], blocks: Sequence[str] | None = None
) -> Iterator[Log]:
    """Hold what all blocks together add, by one mask.

    What is injected between the blocks is part of what they add; it is not added again.
    """
    paths = trunk(module) if blocks is None else list(blocks)
    with recording(module) as log:
        middle = Middle(module, paths, log, lambda *_: bool(mask[log.step]))
        with middle.replaced():
            yield log
