"""Writing a safetensors file whose tensors are aligned in memory when it is mapped.

Libraries of kernels round differently, and are slower, where memory is not aligned. The
format allows no gaps between tensors, so that those that do not end on a boundary are
followed by a tensor of bytes that nobody asks for.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from graphcache.errors import EngineError

ALIGNMENT = 64
"""As torch aligns what it allocates on the CPU."""

_PADDING = "padding"
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def save_aligned(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write tensors one after another; returns where in the file each of them begins.

    Args:
        path: The file.
        tensors: By key, on any device; they are written dense.

    Raises:
        EngineError: If the format has no name for a dtype.
        OSError: If the file cannot be written.
    """
    places: dict[str, int] = {}
    header: dict[str, object] = {}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        places[key] = begin
        header[key] = _entry(_name(key, tensor.dtype), list(tensor.shape), begin, end)
        if padding := -end % ALIGNMENT:
            begin, end = end, end + padding
            header[f"{_PADDING}.{begin}"] = _entry("U8", [padding], begin, end)
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces after the header are part of it.
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            _write(file, tensor)
            file.write(bytes(-file.tell() % ALIGNMENT))
    return {key: 8 + len(text) + begin for key, begin in places.items()}


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _name(key: str, dtype: torch.dtype) -> str:
    if dtype not in _DTYPES:
        raise EngineError(
            f"{key} is {dtype}, which the format of the weights file has no name for: "
            "convert it before compiling"
        )
    return _DTYPES[dtype]


def _write(file: BinaryIO, tensor: Tensor) -> None:
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if dense.nbytes:
        # Its memory as it is, without a copy and without numpy.
        file.write((ctypes.c_char * dense.nbytes).from_address(dense.data_ptr()))
