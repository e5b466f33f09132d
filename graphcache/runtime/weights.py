"""Weights: the tensors of the module itself, never copied.

They are looked up when the module has changed, and not at every call: the polls of
`graphcache.runtime.polls` tell when a weight was replaced. What was written to a weight
is seen in any case, since the tensor is the module's own. What is within a quantised
weight may be replaced while the weight stays: it is read from it at every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from graphcache.program import Input, InputKind
from graphcache.quantised import Take, is_plain, scheme_of
from graphcache.signature import is_lazy, resolved


class Within(NamedTuple):
    """A tensor that is made from a weight, or found in one, at every call.

    Attributes:
        weight: The weight.
        take: Reads the tensor.
    """

    weight: Tensor
    take: Take

    def read(self) -> Tensor:
        """The tensor as it is now."""
        return self.take(self.weight)


Table = Mapping[str, Tensor | Within]
"""What a program may take, by the targets of its inputs."""


class Weights:
    """The weights of one program, in the order of its inputs.

    Args:
        targets: Their qualified names.
        table: The tensors by qualified name.
    """

    def __init__(self, targets: Sequence[str], table: Table) -> None:
        self.targets = tuple(targets)
        self._values: list[Any] = []
        self._within: list[tuple[int, Within]] = []
        self.bind(table)

    @staticmethod
    def of(inputs: Sequence[Input], table: Table) -> Weights:
        """The weights among a program's inputs."""
        names = [entry.target for entry in inputs if entry.kind is InputKind.WEIGHT]
        return Weights(names, table)

    def bind(self, table: Table) -> None:
        """Take the tensors of these names from now on."""
        self._values = [table[target] for target in self.targets]
        pairs = enumerate(self._values)
        self._within = [(i, value) for i, value in pairs if isinstance(value, Within)]

    def release(self) -> None:
        """Hold no tensor until `bind` is called."""
        self._values, self._within = [], []

    @property
    def takes(self) -> list[tuple[int, Take]]:
        """Which of them are within quantised weights, and how those are read."""
        return [(index, within.take) for index, within in self._within]

    def read(self) -> list[Tensor]:
        """The weights as they are now."""
        if not self._within:
            return self._values
        values = self._values.copy()
        for index, within in self._within:
            values[index] = within.read()
        return values


def weights_of(module: nn.Module) -> dict[str, Tensor | Within]:
    """The parameters and buffers of a module by qualified name, tied ones under each.

    Of a quantised weight, there are the tensors that it is made of, under their names
    after its own.

    Args:
        module: The module.

    Raises:
        CaptureError: If a weight is of a kind that is not known.
    """
    found: dict[str, Tensor | Within] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for group in (part._parameters, part._buffers):
            for name, weight in group.items():
                path = f"{prefix}.{name}".lstrip(".")
                if weight is None:
                    continue
                if is_plain(weight):
                    # Compiled code does not look at a negation that is only noted.
                    lazy = is_lazy(weight)
                    found[path] = Within(weight, resolved) if lazy else weight
                else:
                    takes = scheme_of(weight, path).takes(weight, part)
                    found |= {
                        f"{path}.{n}": Within(weight, t) for n, t in takes.items()
                    }
    return found
