"""Plain values and types of tensors, to records and back."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
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


def restorable(what: str, value: Any) -> Plain:
    """The record of a value that has to be made again when the engine is loaded.

    Args:
        what: What it is, for the message.
        value: A value that is no tensor.

    Raises:
        EngineError: If it cannot be made again without the code that defines its type.
    """
    record = plain(value)
    if record.type not in _PARSE:
        raise EngineError(
            f"{what} is a {record.type}: an engine holds numbers, strings, dtypes, "
            "devices and None"
        )
    return record


def value_of(record: Plain) -> Any:
    """The value of a record.

    Raises:
        EngineError: If it is of a type that has no value here, such as an enum, or
            the text is none of a value.
    """
    if record.type not in _PARSE:
        raise EngineError(
            f"a value of type {record.type} cannot be read from an engine"
        )
    try:
        return _PARSE[record.type](record.text)
    except (ValueError, RuntimeError) as error:
        raise EngineError(f"{record.text!r} is no {record.type}: {error}") from error


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
    record = type_record(TensorType.of(value))
    if record.shape is None:
        return record
    return msgspec.structs.replace(record, stride=tuple(value.stride()))


def type_record(value: TensorType) -> TensorRecord:
    """The record of a type; strides are not part of one."""
    dtype = str(value.dtype).removeprefix("torch.")
    known = all(isinstance(extent, int) for extent in value.shape)
    shape = tuple(value.shape) if known else None
    return TensorRecord(dtype, shape, None, value.device.type)


def tensor_type(record: TensorRecord, device: torch.device) -> TensorType:
    """The type that a record describes; without extents where they are not known.

    Args:
        record: It names a type of device.
        device: Which of that type; tensors elsewhere are on the one there is.
    """
    place = device_of(record, device)
    return TensorType(record.shape or (), dtype_of(record.dtype), place)


def device_of(record: TensorRecord, device: torch.device) -> torch.device:
    """Where the tensor of a record is, in an engine that runs on `device`."""
    if record.device == device.type:
        return device
    found: torch.device = value_of(Plain("device", record.device))
    return found
