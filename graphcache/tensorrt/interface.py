"""The interface of an engine, and how values of a program come in and go out.

TensorRT has neither f64 nor complex numbers, takes dense tensors alone, and gives no
output that is an input or another output. What differs from the program is brought
about outside the engine, without a copy where that can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64}


def narrow(dtype: torch.dtype) -> torch.dtype:
    """The dtype that stands for one that an engine does not have."""
    return _NARROW.get(dtype, dtype)


@dataclass(frozen=True)
class Port:
    """An input or output of an engine.

    Attributes:
        name: Its name in the engine.
        shape: Its shape in the engine; a complex tensor has a last dimension of 2.
        dtype: Its dtype in the engine.
        outer: Its dtype in the program.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    outer: torch.dtype

    @staticmethod
    def of(name: str, value: Tensor) -> Port:
        """The port of a value of a program."""
        inner = narrow(value.dtype)
        if inner.is_complex:
            return Port(name, (*value.shape, 2), inner.to_real(), value.dtype)
        return Port(name, tuple(value.shape), inner, value.dtype)

    def enter(self, value: Tensor, device: torch.device) -> Tensor:
        """A value of the program as the engine takes it; dense, on the device."""
        if value.is_complex():
            value = torch.view_as_real(value.resolve_conj())
        return value.to(device, self.dtype).contiguous()

    def allocate(self, device: torch.device) -> Tensor:
        """Memory for an output."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)

    def leave(self, value: Tensor) -> Tensor:
        """What the engine gave, as a value of the program."""
        if self.outer.is_complex:
            value = torch.view_as_complex(value)
        return value.to(self.outer)


@dataclass(frozen=True)
class Interface:
    """How an engine's inputs and outputs are those of a program.

    Attributes:
        inputs: The engine's inputs, each with its index among the program's.
        outputs: The engine's outputs.
        sources: Per output of the program: ``("engine", i)``, the engine's i-th
            output, or ``("input", i)``, the program's i-th input as it is.
    """

    inputs: tuple[tuple[int, Port], ...]
    outputs: tuple[Port, ...]
    sources: tuple[tuple[str, int], ...]

    def enter(self, values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """The engine's inputs from the program's."""
        return [port.enter(values[index], device) for index, port in self.inputs]

    def leave(
        self, values: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """The program's outputs.

        Args:
            values: The program's inputs.
            outputs: The engine's outputs.
        """
        given = [
            port.leave(output)
            for port, output in zip(self.outputs, outputs, strict=True)
        ]
        sides: dict[str, Sequence[Tensor]] = {"engine": given, "input": values}
        return [sides[side][index] for side, index in self.sources]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "inputs": [[index, _port_to_json(port)] for index, port in self.inputs],
            "outputs": [_port_to_json(port) for port in self.outputs],
            "sources": [list(source) for source in self.sources],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Interface:
        """What `to_json` gave."""
        return Interface(
            inputs=tuple((i, _port_from_json(port)) for i, port in data["inputs"]),
            outputs=tuple(map(_port_from_json, data["outputs"])),
            sources=tuple((side, index) for side, index in data["sources"]),
        )


def _port_to_json(port: Port) -> list[Any]:
    names = [str(dtype).removeprefix("torch.") for dtype in (port.dtype, port.outer)]
    return [port.name, list(port.shape), *names]


def _port_from_json(data: Sequence[Any]) -> Port:
    name, shape, dtype, outer = data
    return Port(name, tuple(shape), getattr(torch, dtype), getattr(torch, outer))
