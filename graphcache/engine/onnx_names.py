"""What the inputs and outputs of an ONNX program are called, and how they are typed.

===============  ==============================================================
inputs           the argument's path; ``buffer.<name>``, ``decision.<name>``,
                 ``scalar.<name>``, ``threshold.<name>``, ``live.<name>``
initializers     ``weight.<name>``, ``constant.<name>``
outputs          ``result.<i>``, ``store.<buffer>``, ``score.<predicate>``,
                 ``live.<name>``
===============  ==============================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from graphcache.errors import EngineError
from graphcache.program import Input, InputKind, Program, dtype_name

HELD = (InputKind.WEIGHT, InputKind.CONSTANT)
"""Kinds of inputs that lie in the weights file, and so are no inputs in ONNX."""

# Numbers of `onnx.TensorProto.DataType`; running a program does not need onnx.
_ELEMENTS = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.uint16: 4,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.uint32: 12,
    torch.uint64: 13,
    torch.bfloat16: 16,
}


def element_type(dtype: torch.dtype) -> int:
    """The number that ONNX has for a dtype; a complex number is two reals.

    Raises:
        EngineError: If it has none.
    """
    real = dtype.to_real() if dtype.is_complex else dtype
    if real not in _ELEMENTS:
        raise EngineError(
            f"the onnx format has no type for {dtype_name(dtype)}: convert the module "
            "to one of " + ", ".join(map(dtype_name, _ELEMENTS))
        )
    return _ELEMENTS[real]


def input_name(entry: Input) -> str:
    """What an input is called."""
    if entry.kind is InputKind.ARGUMENT:
        return entry.target
    return f"{entry.kind.value}.{entry.target}"


def output_names(program: Program) -> list[str]:
    """What the outputs are called, in order."""
    return [
        *[f"result.{index}" for index in range(program.results)],
        *[f"store.{name}" for name in program.stores],
        *[f"score.{name}" for name in program.scores],
        *[f"live.{name}" for name in program.lives],
    ]


def refuse_ambiguous(names: Sequence[str]) -> None:
    """Refuse names that do not tell the values apart.

    Raises:
        EngineError: With the names that stand for several.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise EngineError(
            f"the onnx format names values by what they are, and {', '.join(twice)} "
            "would name several: rename the argument of the module's forward"
        )
