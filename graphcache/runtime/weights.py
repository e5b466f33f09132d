"""Weights: read from the module at every call, never copied."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graphcache.program import Input, InputKind


@dataclass(frozen=True)
class Weights:
    """Where a program's weights live in the module, to be read at every call.

    Reading them anew costs tens of nanoseconds each and means that a weight that was
    written, moved or replaced is seen.
    """

    owners: tuple[dict[str, Any], ...]
    names: tuple[str, ...]

    @staticmethod
    def of(module: nn.Module, inputs: Sequence[Input]) -> Weights:
        """The weights that the inputs name, in their order."""
        owners, names = [], []
        for entry in inputs:
            if entry.kind is not InputKind.WEIGHT:
                continue
            path, _, name = entry.target.rpartition(".")
            part = module.get_submodule(path)
            owners.append(
                part._parameters if name in part._parameters else part._buffers
            )
            names.append(name)
        return Weights(tuple(owners), tuple(names))

    def read(self) -> list[Tensor]:
        """The weights as they are now."""
        return list(map(operator.getitem, self.owners, self.names))
