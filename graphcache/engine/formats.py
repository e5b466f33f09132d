"""Formats: how the programs of an engine are written to disk and run from there.

A format knows nothing of streams, steps and decisions: it turns each program into
files, and those files into functions of the program's inputs. It is to an engine what a
backend is to a compiled module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from graphcache.backends.registry import Executable
from graphcache.errors import EngineError
from graphcache.lazy import make_named
from graphcache.program import Input, InputKind, Program, TensorType

WEIGHTS_FILE = "weights.safetensors"
"""The one copy of the weights and constants, whatever the format."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the weights file.

    Attributes:
        key: Its name in the file.
        type: Its shape and dtype.
        stride: How the program expects it in memory; the file holds it dense.
        offset: Where its bytes begin, from the beginning of the file.
    """

    key: str
    type: TensorType
    stride: tuple[int, ...]
    offset: int


Stored = Mapping[tuple[InputKind, str], StoredTensor]
"""What the weights file holds, by kind (weight or constant) and target of the input."""


@dataclass(frozen=True)
class Entry:
    """One program of an engine, as far as whoever runs it has to know.

    Attributes:
        name: Names it within the engine; a valid file name.
        inputs: One per placeholder, in placeholder order.
        types: Type of each input, in the same order.
        outputs: Type of each output: results, stores, scores, lives; None where its
            shape depends on data.
        strides: How each input lies in memory; None where its shape depends on data.
    """

    name: str
    inputs: tuple[Input, ...]
    types: tuple[TensorType | None, ...]
    outputs: tuple[TensorType | None, ...]
    strides: tuple[tuple[int, ...] | None, ...] = ()


@dataclass(frozen=True)
class Job:
    """What a format is to write.

    Attributes:
        programs: By name, lowered or conditional programs.
        folder: Where to; the weights file is there already.
        stored: What the weights file holds.
        device: The device that the engine is to run on.
        options: The format's own options.
        advance: To be called once for each program that is done.
    """

    programs: Mapping[str, Program]
    folder: Path
    stored: Stored
    device: torch.device
    options: Mapping[str, Any] = field(default_factory=dict)
    advance: Callable[[], None] = lambda: None


class Format(Protocol):
    """Writes and opens one kind of engine."""

    name: str
    conditions: bool
    """Whether it takes programs with `torch.cond`."""
    portable: bool
    """Whether its files run under any release of torch and on any machine."""

    def write(self, job: Job) -> Mapping[str, Any]:
        """Compile every program and write the files.

        Args:
            job: What to write, and where.

        Returns:
            Plain data (JSON) that `open` will need.

        Raises:
            EngineError: If an option is unknown, a program cannot be taken, or a
                package is missing; the message says which and what to do.
        """
        ...

    def open(
        self,
        folder: Path,
        entries: Sequence[Entry],
        details: Mapping[str, Any],
        device: torch.device,
        tensors: Mapping[tuple[InputKind, str], Tensor],
    ) -> Mapping[str, Executable]:
        """Make the programs callable; the hashes of all files have been checked.

        Args:
            folder: The engine.
            entries: Its programs.
            details: What `write` returned.
            device: Where it runs.
            tensors: Weights and constants, memory-mapped or on the device.

        Returns:
            By program name, a function that takes one value per input, in order, and
            returns one tensor per output.

        Raises:
            EngineError: If a package is missing or the files cannot be run here.
        """
        ...


_FORMATS = {
    "aot_inductor": "graphcache.engine.aot_inductor:AotInductorFormat",
    "onnx": "graphcache.engine.onnx:OnnxFormat",
    "tensorrt": "graphcache.engine.tensorrt:TensorRTFormat",
}


def format_names() -> tuple[str, ...]:
    """The names that `get_format` knows."""
    return tuple(_FORMATS)


def get_format(name: str) -> Format:
    """The format called `name`.

    Raises:
        EngineError: If there is none; the message lists the known names.
    """
    found: Format = make_named(_FORMATS, name, "engine backend", EngineError)
    return found
