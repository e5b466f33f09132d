"""Weights: read from the module at every call, never copied."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graphcache.program import Input, InputKind
from graphcache.signature import is_lazy, resolved


@dataclass(frozen=True)
class Weights:
    """Where a program's weights live in the module, to be read at every call.

    Reading them anew costs tens of nanoseconds each and means that a weight that was
    written, moved or replaced is seen.

    Attributes:
        owners: The tables that hold them.
        names: Their names there.
        lazy: Which of them have a negation or conjugation noted on them, which compiled
            code does not look at.
    """

    owners: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    lazy: tuple[int, ...]

    @staticmethod
    def of(module: nn.Module, inputs: Sequence[Input]) -> Weights:
        """The weights that the inputs name, in their order."""
        owners: list[dict[str, Any]] = []
        names: list[str] = []
        for entry in inputs:
            if entry.kind is not InputKind.WEIGHT:
                continue
            path, _, name = entry.target.rpartition(".")
            part = module.get_submodule(path)
            owners.append(
                part._parameters if name in part._parameters else part._buffers
            )
            names.append(name)
        places = enumerate(zip(owners, names, strict=True))
        lazy = tuple(
            # A graph of Dynamo's is given its weights, and some are in no table.
            index
            for index, (owner, name) in places
            if name in owner and is_lazy(owner[name])
        )
        return Weights(tuple(owners), tuple(names), lazy)

    def read(self) -> list[Tensor]:
        """The weights as they are now."""
        values = list(map(operator.getitem, self.owners, self.names))
        for index in self.lazy:
            values[index] = resolved(values[index])
        return values
