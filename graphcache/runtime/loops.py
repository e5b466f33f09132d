"""Loops by the calls that they are good for.

A capture is good for one key, and for the values of the arguments that the host read
while it was made. Those are compared at every call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from graphcache.signature import Call, CallKey

if TYPE_CHECKING:
    from graphcache.runtime.loop import Loop

_MOST = 16


@dataclass
class ReadValue:
    """The value of one argument that was compiled in.

    Attributes:
        index: Which of the call's tensors it is.
        value: What it was.
        latest: The tensor that was last found equal, and how often it had been
            written to.
    """

    index: int
    value: Tensor
    latest: tuple[Tensor, int] | None = None

    def holds(self, call: Call) -> bool:
        """Whether the call gives the same value.

        On the CPU that is looked at every time. Elsewhere the host would have to wait
        for the device, so a tensor that has not been written to since is taken for
        what it was.
        """
        tensor = call.tensors[self.index]
        if tensor.device.type == "cpu" or tensor.is_inference():
            return torch.equal(tensor, self.value)
        if self.latest is not None and tensor is self.latest[0]:
            if tensor._version == self.latest[1]:
                return True
        same = torch.equal(tensor, self.value)
        if same:
            self.latest = tensor, tensor._version
        return same


@dataclass(frozen=True)
class ReadValues:
    """The arguments whose values were compiled into a capture."""

    entries: tuple[ReadValue, ...]

    @staticmethod
    def of(call: Call, paths: Collection[str]) -> ReadValues:
        """The values that a call gives for the arguments at some paths."""
        return ReadValues(
            tuple(
                ReadValue(index, call.tensors[index].clone())
                for index, path in enumerate(call.paths)
                if path in paths
            )
        )

    def hold(self, call: Call) -> bool:
        """Whether a call of the same key gives the same values."""
        return all(entry.holds(call) for entry in self.entries)


L = TypeVar("L", bound="Loop")


class Loops(Generic[L]):
    """The most recently made loops."""

    def __init__(self) -> None:
        self._loops: list[tuple[CallKey, L]] = []

    def __iter__(self) -> Iterator[L]:
        return (loop for _, loop in self._loops)

    def find(self, call: Call) -> L | None:
        """The loop that is good for a call."""
        for key, loop in self._loops:
            if key == call.key and loop.values.hold(call):
                return loop
        return None

    def add(self, call: Call, loop: L) -> None:
        """Add the loop of a call; the oldest goes if there are too many."""
        self._loops = [*self._loops[1 - _MOST :], (call.key, loop)]

    def clear(self) -> None:
        """Forget them all."""
        self._loops.clear()
