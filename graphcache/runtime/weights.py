"""Weights: the tensors of the module itself, never copied.

They are looked up when the module has changed, and not at every call: the polls of
`graphcache.runtime.polls` tell when a weight was replaced. What was written to a weight
is seen in any case, since the tensor is the module's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from graphcache.program import Input, InputKind


class Weights:
    """The weights of one program, in the order of its inputs.

    Args:
        targets: Their qualified names.
        table: The tensors by qualified name.
    """

    def __init__(self, targets: Sequence[str], table: Mapping[str, Tensor]) -> None:
        self.targets = tuple(targets)
        self._values: list[Tensor] = []
        self.bind(table)

    @staticmethod
    def of(inputs: Sequence[Input], table: Mapping[str, Tensor]) -> Weights:
        """The weights among a program's inputs."""
        names = [entry.target for entry in inputs if entry.kind is InputKind.WEIGHT]
        return Weights(names, table)

    def bind(self, table: Mapping[str, Tensor]) -> None:
        """Take the tensors of these names from now on."""
        self._values = [table[target] for target in self.targets]

    def release(self) -> None:
        """Hold no tensor until `bind` is called."""
        self._values = []

    def read(self) -> list[Tensor]:
        """The weights as they are now."""
        return self._values


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module by qualified name, tied ones under each.

    Args:
        module: The module.
    """
    return {
        f"{path}.{name}".lstrip("."): weight
        for path, part in module.named_modules(remove_duplicate=False)
        for group in (part._parameters, part._buffers)
        for name, weight in group.items()
        if weight is not None
    }
