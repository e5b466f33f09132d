"""Outputs: what a module returns, with its tensors taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from graphcache.errors import CaptureError
from graphcache.program import TensorType, fake_value, output_node, output_values


@dataclass(frozen=True)
class OutputTree:
    """The structure of what a module returns.

    Attributes:
        spec: The containers.
        leaves: The type of each tensor; what is no tensor, such as None, as it is.
    """

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @property
    def tensors(self) -> tuple[TensorType, ...]:
        """The types of its tensors, in order."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorType))

    def fill(self, tensors: Sequence[Tensor]) -> Any:
        """What the module returns, made of these tensors."""
        values = iter(tensors)
        leaves = [
            next(values) if isinstance(leaf, TensorType) else leaf
            for leaf in self.leaves
        ]
        return pytree.tree_unflatten(leaves, self.spec)


def tree_of(output: Any) -> OutputTree:
    """The structure of a module's output."""
    leaves, spec = pytree.tree_flatten(output)
    return OutputTree(spec, tuple(map(_leaf, leaves)))


def take_tensors(graph: fx.Graph, spec: pytree.TreeSpec) -> OutputTree:
    """Leave the graph its tensors to return; returns where they belong.

    Args:
        graph: It returns every leaf of the module's output, then what it wrote.
        spec: The containers of the output.

    Raises:
        CaptureError: If a number that depends on data is returned.
    """
    values = output_values(graph)
    tensors = [value for value in values if isinstance(value, fx.Node)]
    for node in tensors:
        if not isinstance(fake_value(node), Tensor):
            raise CaptureError(
                f"the forward returns a {type(fake_value(node)).__name__} that depends "
                "on data: only tensors can change from call to call"
            )
    output_node(graph).args = (tuple(tensors),)
    leaves = values[: spec.num_leaves]
    return OutputTree(
        spec, tuple(_leaf(fake_value(v) if v in tensors else v) for v in leaves)
    )


def _leaf(value: Any) -> Any:
    return TensorType.of(value) if isinstance(value, Tensor) else value
