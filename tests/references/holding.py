"""Modules that give out what they gave when they last ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tests.references.patching import Forward, Log, Wrapper, recording, replaced


@contextmanager
def holding(
    module: nn.Module, paths: Iterable[str], computes: Callable[[str, int], bool]
) -> Iterator[Log]:
    """Run modules where ``computes(path, step)``, and hold their outputs elsewhere.

    A module without an output to hold runs. One that is called several times in a step
    (CogView4's feed-forward serves two streams) holds an output for each of its calls.
    """
    held: dict[tuple[str, int], Any] = {}
    calls: Counter[tuple[str, int]] = Counter()

    def wrapper(path: str) -> Wrapper:
        def wrap(forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                key = path, calls[path, log.step]
                calls[path, log.step] += 1
                if key not in held or computes(path, log.step):
                    log.ran(path)
                    held[key] = forward(*args, **kwargs)
                return held[key]

            return run

        return wrap

    wrappers = {path: wrapper(path) for path in paths}
    with recording(module) as log, replaced(module, wrappers):
        yield log
