"""Outputs: what a module returns, as records; and what stands for a model's own class.

An engine has no source of the model, and imports nothing that a file names. An output
class of diffusers is therefore given back as an `EngineOutput` of the same fields.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphcache.capture.outputs import OutputTree
from graphcache.capture.writes import GONE, Write
from graphcache.engine.manifest import TreeRecord, WriteRecord
from graphcache.engine.plain import (
    plain,
    restorable,
    tensor_type,
    type_record,
    value_of,
)
from graphcache.errors import EngineError
from graphcache.program import TensorType


class EngineOutput(OrderedDict[str, Any]):
    """Fields by name, by attribute or by place, as outputs of diffusers give them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no field {name!r}") from None

    def __getitem__(self, key: Any) -> Any:
        return (
            super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]
        )

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields in order."""
        return tuple(self.values())


pytree.register_pytree_node(
    EngineOutput,
    lambda output: (list(output.values()), tuple(output)),
    lambda values, names: EngineOutput(zip(names, values, strict=True)),
)


def tree_record(tree: OutputTree) -> TreeRecord:
    """The record of what a module returns.

    Raises:
        EngineError: If it is a container that an engine does not know.
    """
    # Markers in the places of the leaves: what holds them is looked at as it is.
    markers = [_Marker(leaf) for leaf in tree.leaves]
    return _record(pytree.tree_unflatten(markers, tree.spec))


class _Marker:
    """Stands for a leaf."""

    def __init__(self, leaf: Any) -> None:
        self.leaf = leaf


def _record(value: Any) -> TreeRecord:
    if isinstance(value, _Marker):
        if isinstance(value.leaf, TensorType):
            return TreeRecord("tensor", type=type_record(value.leaf))
        said = restorable("what the module returns", value.leaf)
        return TreeRecord("plain", value=said)
    if value is None:
        return TreeRecord("plain", value=plain(None))
    if type(value) in (tuple, list):
        return TreeRecord(type(value).__name__, items=tuple(map(_record, value)))
    if type(value) is dict:
        names, items = tuple(value), tuple(map(_record, value.values()))
        return TreeRecord("dict", names=names, items=items)
    if isinstance(value, OrderedDict):
        names, items = tuple(value), tuple(map(_record, value.values()))
        return TreeRecord("output", names=names, items=items)
    raise EngineError(
        f"the module returns a {type(value).__qualname__}: an engine gives back "
        "tuples, lists, dicts and outputs of diffusers"
    )


def tree_of(record: TreeRecord, device: torch.device) -> OutputTree:
    """What a module returns, from its record."""
    leaves: list[Any] = []
    built = _build(record, device, leaves)
    _, spec = pytree.tree_flatten(built, is_leaf=lambda v: isinstance(v, _Marker))
    return OutputTree(spec, tuple(leaves))


def _build(record: TreeRecord, device: torch.device, leaves: list[Any]) -> Any:
    if record.kind == "tensor":
        assert record.type is not None
        leaves.append(tensor_type(record.type, device))
        return _Marker(None)
    if record.kind == "plain":
        assert record.value is not None
        leaves.append(value_of(record.value))
        return _Marker(None)
    items = [_build(item, device, leaves) for item in record.items]
    if record.kind == "tuple":
        return tuple(items)
    if record.kind == "list":
        return items
    kind = dict if record.kind == "dict" else EngineOutput
    return kind(zip(record.names, items, strict=True))


def write_record(write: Write) -> WriteRecord:
    """The record of what a module writes to a container that it is given.

    Raises:
        EngineError: If it is a value that cannot be made again.
    """
    keys = tuple(key if isinstance(key, int) else str(key) for key in write.keys)
    if write.value is GONE:
        return WriteRecord(keys, None)
    if not write.is_plain:
        raise EngineError(
            f"the module writes tensors to {write.path}, and an engine gives back what "
            "the module returns alone: run this call with what graphcache.compile makes"
        )
    return WriteRecord(
        keys, restorable(f"what is written to {write.path}", write.value)
    )


def write_of(record: WriteRecord) -> Write:
    """What a module writes, from its record."""
    value = GONE if record.value is None else value_of(record.value)
    return Write(record.keys, value)
