"""Backends by name, loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from graphcache.errors import BackendError
from graphcache.lazy import make_named
from graphcache.program import Program

Executable = Callable[[list[Any]], Sequence[Tensor]]
"""Takes one value per program input, in order; returns one per output."""


@dataclass(frozen=True)
class Capabilities:
    """What a backend can take; the lowering is chosen from it.

    Attributes:
        gates: Cached programs, with `gate` ops and decisions as inputs.
        conditions: Programs with `torch.cond`.
        compiles: Whether it generates code, which takes long enough to show progress.
    """

    gates: bool = False
    conditions: bool = False
    compiles: bool = False


class Backend(Protocol):
    """Turns programs into functions."""

    name: str
    capabilities: Capabilities

    def compile(self, program: Program, options: Mapping[str, Any]) -> Executable:
        """Compile one program.

        Args:
            program: A lowered program, or a cached one if the backend takes gates.
            options: The backend's own options.

        Raises:
            BackendError: If an option is unknown or the program cannot be taken.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A backend that can say what it would make of programs."""

    def explain(self, programs: Sequence[Program]) -> tuple[str, ...]:
        """Lines for the report of `graphcache.explain`; nothing is compiled."""
        ...


_BACKENDS = {
    "reference": "graphcache.backends.reference:ReferenceBackend",
    "eager": "graphcache.backends.eager:EagerBackend",
    "inductor": "graphcache.backends.inductor:InductorBackend",
    "tensorrt": "graphcache.backends.tensorrt:TensorRTBackend",
}


def backend_names() -> tuple[str, ...]:
    """The names that `get_backend` knows."""
    return tuple(_BACKENDS)


def get_backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        BackendError: If there is none; the message lists the known names.
    """
    backend: Backend = make_named(_BACKENDS, name, "backend", BackendError)
    return backend


def refuse_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise for options given to a backend that has none."""
    if options:
        raise BackendError(
            f"backend {name!r} takes no options, got {', '.join(sorted(options))}"
        )
