"""Replacing forwards for a while, and the record of what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tests.zoo import TinyModel, denoise, make

Forward = Callable[..., Any]
Wrapper = Callable[[Forward], Forward]


@dataclass
class Log:
    """What a method did, in a new entry for each call of the root.

    Attributes:
        computed: Paths of the modules under the method that ran.
        changes: What a dynamic method measured, or None where it did not look.
    """

    computed: list[set[str]] = field(default_factory=list)
    changes: list[float | None] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Index of the call in progress."""
        return len(self.computed) - 1

    def ran(self, path: str) -> None:
        """Note that a module runs."""
        self.computed[-1].add(path)

    def measured(self, change: float) -> None:
        """Note what was measured."""
        self.changes[-1] = change

    def _begin(self, *_: Any) -> None:
        self.computed.append(set())
        self.changes.append(None)


@dataclass
class ReferenceRun:
    """One generation of a reference.

    Attributes:
        outputs: The root's output at every step.
        computed: Paths of the modules under the method that ran, by step.
        changes: What the method measured, by step.
    """

    outputs: list[Tensor]
    computed: list[set[str]]
    changes: list[float | None]

    def steps(self, path: str | None = None) -> list[int]:
        """The steps at which a module ran, or any under the method."""
        return [
            step
            for step, paths in enumerate(self.computed)
            if (path in paths if path else paths)
        ]


@contextmanager
def recording(module: nn.Module) -> Iterator[Log]:
    """A log that has a new entry for each call of the module."""
    log = Log()
    handle = module.register_forward_pre_hook(log._begin)
    try:
        yield log
    finally:
        handle.remove()


@contextmanager
def replaced(module: nn.Module, wrappers: Mapping[str, Wrapper]) -> Iterator[None]:
    """Wrap the forwards of submodules, given by path, until the context ends."""
    parts = {path: module.get_submodule(path) for path in wrappers}
    before: dict[str, Any] = {
        path: part.__dict__.get("forward") for path, part in parts.items()
    }
    try:
        for path, wrapper in wrappers.items():
            parts[path].forward = wrapper(parts[path].forward)
        yield
    finally:
        for path, part in parts.items():
            part.__dict__.pop("forward", None)
            if before[path] is not None:
                part.forward = before[path]


def logged(
    method: AbstractContextManager[Log], loop: Callable[[], list[Tensor]]
) -> ReferenceRun:
    """Run a loop inside a method."""
    with method as log:
        outputs = loop()
    return ReferenceRun(outputs, log.computed, log.changes)


def by_reference(
    tiny: TinyModel,
    method: Callable[[nn.Module], AbstractContextManager[Log]],
    steps: int,
    *,
    seed: int = 1,
    loop: Callable[..., list[Tensor]] = denoise,
) -> ReferenceRun:
    """One generation of a model of the zoo."""
    module = make(tiny)
    return logged(method(module), lambda: loop(module, tiny, steps, seed=seed))
