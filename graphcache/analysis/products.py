"""Products of quantised weights: operators that say in their name that they multiply.

Each library of quantised weights brings operators of its own: ``aten::_int_mm``,
``aten::_scaled_mm``, ``bitsandbytes::gemm_4bit``, ``quanto::qbytes_mm``.
"""

from __future__ import annotations

import re

import torch
from torch import fx

_NAME = re.compile(r"(?:^|_|pack)(?:mm|gemm|gemv|matmul|linear)(?:_|$)")
# Those of whole matrices of numbers, which analyses know by their operands.
_FLOATING = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear")


def is_quantised_product(node: fx.Node) -> bool:
    """Whether a node multiplies by a quantised weight, by the name of its operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    namespace, _, name = node.target._schema.name.partition("::")
    if namespace == "aten" and name in _FLOATING:
        return False
    return _NAME.search(name) is not None
