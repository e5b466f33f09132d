"""The weights file: one copy of every weight and constant, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from graphcache.engine.formats import WEIGHTS_FILE, Stored, StoredTensor
from graphcache.engine.manifest import StoredRecord
from graphcache.engine.plain import tensor_record
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
    """
    keys: dict[tuple[object, ...], str] = {}
    written: dict[str, Tensor] = {}
    places: dict[tuple[InputKind, str], str] = {}
    for (kind, target), tensor in tensors.items():
        key = keys.setdefault(_identity(tensor), f"{kind.value}.{target}")
        places[kind, target] = key
        written[key] = _dense(tensor)
    written |= {key: _dense(tensor) for key, tensor in others.items()}
    save_file(written, folder / WEIGHTS_FILE)
    offsets = _offsets(folder / WEIGHTS_FILE)
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

    On the CPU they are mapped into memory, and read when they are used.

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
            found[InputKind(record.kind), record.target] = _laid_out(tensor, record)
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
            f"{WEIGHTS_FILE} is not that of this engine: it lacks {key}"
        ) from error
    return tensor


def _laid_out(tensor: Tensor, record: StoredRecord) -> Tensor:
    found = tensor_record(tensor)
    if (found.dtype, found.shape) != (record.type.dtype, record.type.shape):
        raise EngineError(
            f"{WEIGHTS_FILE} is not that of this engine: {record.key} is {found.dtype}"
            f"{list(found.shape or ())} instead of {record.type.dtype}"
            f"{list(record.type.shape or ())}"
        )
    stride = record.type.stride or ()
    if tuple(tensor.stride()) == stride:
        return tensor
    placed = torch.empty_strided(
        tensor.shape, stride, dtype=tensor.dtype, device=tensor.device
    )
    return placed.copy_(tensor)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*place, tensor.dtype, tensor.device, tensor.shape, tensor.stride())


def _dense(tensor: Tensor) -> Tensor:
    """A tensor that shares its memory with no other, on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()


def _offsets(path: Path) -> dict[str, int]:
    """Where in the file each tensor begins.

    The format is eight bytes that say how long the header is, the header, and the
    tensors one after another.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        key: 8 + length + entry["data_offsets"][0]
        for key, entry in header.items()
        if key != "__metadata__"
    }
