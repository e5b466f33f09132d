"""The weights file: one copy of every weight and constant, as safetensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from graphcache.engine.aligned import save_aligned
from graphcache.engine.formats import WEIGHTS_FILE, Stored, StoredTensor
from graphcache.engine.manifest import StoredRecord
from graphcache.engine.plain import device_of, tensor_record
from graphcache.errors import EngineError
from graphcache.program import InputKind, TensorType

Named = Mapping[tuple[InputKind, str], Tensor]


def store_tensors(
    folder: Path, tensors: Named, others: Mapping[str, Tensor]
) -> dict[tuple[InputKind, str], StoredTensor]:
    """Write the weights file.

    Args:
        folder: The engine.
        tensors: Weights and constants; one that is in two places is written once.
        others: What else is to be kept, by key.

    Raises:
        EngineError: If the file cannot hold a dtype.
        OSError: If it cannot be written.
    """
    keys: dict[tuple[object, ...], str] = {}
    places: dict[tuple[InputKind, str], str] = {}
    kept = dict(others)
    for (kind, target), tensor in tensors.items():
        key = keys.setdefault(_identity(tensor), f"{kind.value}.{target}")
        places[kind, target] = key
        kept[key] = tensor
    offsets = save_aligned(folder / WEIGHTS_FILE, kept)
    return {
        place: StoredTensor(
            key,
            TensorType.of(tensors[place]),
            tuple(tensors[place].stride()),
            offsets[key],
        )
        for place, key in places.items()
    }


def stored_records(stored: Stored, tensors: Named) -> tuple[StoredRecord, ...]:
    """Where each weight and constant is, as records."""
    return tuple(
        StoredRecord(
            kind.value, target, tensor.key, tensor_record(tensors[kind, target])
        )
        for (kind, target), tensor in stored.items()
    )


def load_tensors(
    folder: Path, records: Iterable[StoredRecord], device: torch.device
) -> dict[tuple[InputKind, str], Tensor]:
    """Weights and constants, each as the programs expect it.

    On the CPU they are mapped into memory, and read when they are used; programs that
    share a weight are given the same tensor.

    Raises:
        EngineError: If the file does not hold what the manifest says.
    """
    loaded: dict[str, Tensor] = {}
    found: dict[tuple[InputKind, str], Tensor] = {}
    with _opened(folder, device) as file:
        for record in records:
            tensor = loaded.get(record.key)
            if tensor is None:
                tensor = loaded[record.key] = _get(file, record.key)
            place = device_of(record.type, device)
            found[InputKind(record.kind), record.target] = _laid_out(
                tensor.to(place), record
            )
    return found


def load_others(
    folder: Path, keys: Iterable[str], device: torch.device
) -> dict[str, Tensor]:
    """What else was kept, by key."""
    with _opened(folder, device) as file:
        return {key: _get(file, key) for key in keys}


def _opened(folder: Path, device: torch.device) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(folder / WEIGHTS_FILE, "pt", device=str(device))
    except (OSError, safetensors.SafetensorError) as error:
        raise EngineError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error


def _get(file: safetensors.safe_open, key: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise EngineError(
            f"{WEIGHTS_FILE} is not that of this engine: it lacks {key}. Copy the "
            "engine again, or export it anew"
        ) from error
    return tensor


def _laid_out(tensor: Tensor, record: StoredRecord) -> Tensor:
    found = tensor_record(tensor)
    if (found.dtype, found.shape) != (record.type.dtype, record.type.shape):
        raise EngineError(
            f"{WEIGHTS_FILE} is not that of this engine: {record.key} is {found.dtype}"
            f"{list(found.shape or ())} instead of {record.type.dtype}"
            f"{list(record.type.shape or ())}. Copy the engine again, or export it anew"
        )
    stride = record.type.stride or ()
    if tuple(tensor.stride()) == stride:
        return tensor
    return laid_out(tensor, stride)


def laid_out(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """A copy of a tensor with other strides."""
    placed = torch.empty_strided(
        tensor.shape, stride, dtype=tensor.dtype, device=tensor.device
    )
    # Where one element stands for many, as in an expanded tensor, it is written once.
    spread = [index for index, step in enumerate(stride) if step == 0]
    whole, source = placed, tensor
    for index in spread:
        whole, source = whole.narrow(index, 0, 1), source.narrow(index, 0, 1)
    whole.copy_(source)
    return placed


def _identity(tensor: Tensor) -> tuple[object, ...]:
    place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*place, tensor.dtype, tensor.device, tensor.shape, tensor.stride())
