"""The options of a TensorRT build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from graphcache.errors import GraphCacheError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WEIGHTS = ("inputs", "constants")


@dataclass(frozen=True)
class BuildOptions:
    """How engines are built.

    Attributes:
        precision: What the module is to be in: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
            An engine computes in the types of its graph, so this changes nothing: it
            is an error if the module is in another precision. None takes any.
        weights: ``"inputs"`` leaves the weights outside, one copy on the device for
            all engines; ``"constants"`` builds them in, which lets TensorRT arrange
            them, and each engine holds its own.
        workspace_size: Bytes that a layer may use for its intermediate values; 0 lets
            TensorRT use what the device has.
        timing_cache_path: File of measured kernels, read if it is there and written
            after a build; the RTX flavour measures nothing and has none.
        optimization_level: How long to look for fast kernels, 0 to 5; None leaves it
            to TensorRT.
        tf32: Whether products in fp32 may round their operands to TF32; None does as
            ``torch.backends.cuda.matmul.allow_tf32`` says.
        decompose_attention: Whether attention is built from products and a softmax
            instead of TensorRT's attention layer; within a condition it always is.
        compute_capability: Of the GPU to build for, such as ``"8.9"``; None is the
            present one. Another than the present needs the RTX flavour.
    """

    precision: str | None = None
    weights: str = "inputs"
    workspace_size: int = 0
    timing_cache_path: str | None = None
    optimization_level: int | None = None
    tf32: bool | None = None
    decompose_attention: bool = False
    compute_capability: str | None = None

    @property
    def allows_tf32(self) -> bool:
        """Whether products in fp32 may round their operands."""
        if self.tf32 is not None:
            return self.tf32
        return bool(torch.backends.cuda.matmul.allow_tf32)


def parse_options(
    options: Mapping[str, Any], error: type[GraphCacheError]
) -> BuildOptions:
    """Check and read options.

    Args:
        options: By name.
        error: What to raise.

    Raises:
        GraphCacheError: Of type `error`, for an unknown name or a wrong value.
    """
    known = [field.name for field in fields(BuildOptions)]
    unknown = sorted(name for name in options if name not in known)
    if unknown:
        raise error(
            f"tensorrt has no option {', '.join(unknown)}: know {', '.join(known)}"
        )
    for name, value in options.items():
        if not _fits(name, value):
            raise error(f"the tensorrt option {name} cannot be {value!r}")
    return BuildOptions(**options)


def _fits(name: str, value: Any) -> bool:
    if name == "weights":
        return value in _WEIGHTS
    if value is None:
        return name not in ("workspace_size", "decompose_attention")
    if name == "precision":
        return value in PRECISIONS
    if name in ("tf32", "decompose_attention"):
        return isinstance(value, bool)
    if name in ("timing_cache_path", "compute_capability"):
        return isinstance(value, str) and (
            name == "timing_cache_path" or bool(re.fullmatch(r"\d+\.\d", value))
        )
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return whole and (name == "workspace_size" or value <= 5)
