"""Plain values and types of tensors, to records and back."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from graphcache.engine.manifest import Plain, TensorRecord
from graphcache.errors import EngineError
from graphcache.program import TensorType

_PARSE: dict[str, Any] = {
    "bool": lambda text: text == "True",
    "int": int,
    "float": float,
    "str": str,
    "NoneType": lambda text: None,
    "dtype": lambda text: dtype_of(text),
    "device": torch.device,
}


def plain(value: Any) -> Plain:
    """The record of a value."""
    if isinstance(value, enum.Enum):
        return Plain(type_name(type(value)), value.name)
    if isinstance(value, torch.dtype):
        return Plain("dtype", str(value).removeprefix("torch."))
    if isinstance(value, str):
        return Plain("str", str(value))
    if isinstance(value, torch.device):
        return Plain("device", str(value))
    return Plain(type_name(type(value)), repr(value))


def value_of(record: Plain) -> Any:
    """The value of a record.

    Raises:
        EngineError: If it is of a type that has no value here, such as an enum.
    """
    if record.type not in _PARSE:
        raise EngineError(
            f"a value of type {record.type} cannot be read from an engine"
        )
    return _PARSE[record.type](record.text)


def type_name(kind: type) -> str:
    """The qualified name of a type; of a built-in one, its name."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def dtype_of(name: str) -> torch.dtype:
    """The dtype called `name`, such as ``float32``.

    Raises:
        EngineError: If torch has none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise EngineError(f"torch has no dtype {name!r}")
    return found


def tensor_record(value: Tensor) -> TensorRecord:
    """The record of a real or fake tensor."""
    dtype = str(value.dtype).removeprefix("torch.")
    if not all(isinstance(extent, int) for extent in value.shape):
        return TensorRecord(dtype, None, None)
    return TensorRecord(dtype, tuple(value.shape), tuple(value.stride()))


def type_record(value: TensorType) -> TensorRecord:
    """The record of a type; strides are not part of one."""
    dtype = str(value.dtype).removeprefix("torch.")
    known = all(isinstance(extent, int) for extent in value.shape)
    return TensorRecord(dtype, tuple(value.shape) if known else None, None)


def tensor_type(record: TensorRecord, device: torch.device) -> TensorType:
    """The type that a record describes; without extents where they are not known."""
    return TensorType(record.shape or (), dtype_of(record.dtype), device)
