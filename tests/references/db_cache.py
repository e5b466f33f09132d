"""DBCache: head blocks always run, and their change decides about the middle.

The change is that of what the head adds to the hidden stream, relative L1, against the
last step that computed the middle. Tail blocks always run. With one head block, no tail
and no limits it is First Block Cache, but for a change that equals the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tests.parts import trunk
from tests.references.middle import Middle, entering, leaving
from tests.references.patching import Forward, Log, Wrapper, recording, replaced


@dataclass(frozen=True)
class Limits:
    """What comes before the threshold.

    Attributes:
        warmup: Steps at the beginning that compute.
        max_run: Steps in a row that may be reused.
        max_cached: Steps that may be reused in all.
        mask: By step, one computes; zero asks the threshold.
        static: Zero in the mask reuses, whatever the change.
    """

    warmup: int = 0
    max_run: int | None = None
    max_cached: int | None = None
    mask: Sequence[int] | None = None
    static: bool = False


@contextmanager
def db_cache(
    module: nn.Module,
    threshold: float,
    *,
    head: int = 1,
    tail: int = 0,
    limits: Limits | None = None,
    blocks: Sequence[str] | None = None,
) -> Iterator[Log]:
    """Reuse what the middle adds while the head's change is below the threshold.

    Args:
        module: The transformer.
        threshold: Reused only strictly below it.
        head: Blocks at the beginning that always run.
        tail: Blocks at the end that always run.
        limits: Warm-up, mask, and how much may be reused.
        blocks: The blocks in order, if not all of the trunk.
    """
    paths = trunk(module) if blocks is None else list(blocks)
    middle = paths[head : len(paths) - tail]
    with recording(module) as log:
        gate = _Gate(threshold, limits or Limits(), log)
        run = Middle(module, middle, log, gate.decide)
        first, last = paths[0], paths[head - 1]
        with (
            replaced(module, {first: gate.entry(module.get_submodule(first))}),
            replaced(module, {last: gate.exit(module.get_submodule(last), run)}),
            run.replaced(),
        ):
            yield log


@dataclass
class _Gate:
    threshold: float
    limits: Limits
    log: Log
    entered: Tensor | None = None
    added: Tensor | None = None
    reference: Tensor | None = None
    reused: list[int] = field(default_factory=list)

    def entry(self, block: nn.Module) -> Wrapper:
        """Note what enters the head."""

        def wrap(forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                self.entered = entering(block, args, kwargs)[0]
                return forward(*args, **kwargs)

            return run

        return wrap

    def exit(self, block: nn.Module, middle: Middle) -> Wrapper:
        """Note what the head adds, and what enters the middle."""

        def wrap(forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                outputs = forward(*args, **kwargs)
                streams = leaving(block, outputs)
                middle.enter(streams)
                left = streams[0]
                assert left is not None
                assert self.entered is not None
                self.added = left - self.entered
                return outputs

            return run

        return wrap

    def decide(self, *_: Any) -> bool:
        """Whether to compute the middle."""
        computes = self.reference is None or self._computes()
        if computes:
            self.reference = self.added
        else:
            self.reused.append(self.log.step)
        return computes

    def _computes(self) -> bool:
        limits, step = self.limits, self.log.step
        if step < limits.warmup:
            return True
        if limits.mask is not None and limits.mask[step]:
            return True
        if limits.mask is not None and limits.static:
            return False
        if self._spent():
            return True
        assert self.added is not None
        assert self.reference is not None
        gap = (self.added - self.reference).abs().mean()
        change = float(gap / self.reference.abs().mean())
        self.log.measured(change)
        # Not the same as >=: what is not a number computes.
        return not change < self.threshold

    def _spent(self) -> bool:
        limits, step = self.limits, self.log.step
        if limits.max_cached is not None and len(self.reused) >= limits.max_cached:
            return True
        if limits.max_run is None:
            return False
        run = set(range(step - limits.max_run, step))
        return run <= set(self.reused)
