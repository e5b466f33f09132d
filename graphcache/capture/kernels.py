"""Kernels: an attention that the forward pins to plain mathematics stays so.

``scaled_dot_product_attention`` in a graph is whatever kernel torch chooses when the
graph runs. A forward that asks for the mathematical form, as diffusers' attention
backend ``_native_math`` does with a context manager, is given the operations of it.
So is one that is traced while nothing else is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.backends import cuda
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Untyped in torch.
_flash: Callable[[], bool] = cuda.flash_sdp_enabled
_memory_efficient: Callable[[], bool] = cuda.mem_efficient_sdp_enabled
_cudnn: Callable[[], bool] = cuda.cudnn_sdp_enabled


class PinnedKernels(TorchFunctionMode):
    """Replaces an attention for which no other kernel than mathematics is allowed."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        """One call of a torch function by the forward."""
        kwargs = kwargs or {}
        attention = functional.scaled_dot_product_attention
        if func is attention and only_mathematics():
            return _mathematical(*args, **kwargs)
        return func(*args, **kwargs)


def only_mathematics() -> bool:
    """Whether torch may choose no other form of attention than the mathematical one."""
    return not (_flash() or _memory_efficient() or _cudnn())


def _mathematical(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The operations of the mathematical form, in the order of torch's own.

    Args:
        query: ``[..., heads, n, width]``.
        key: ``[..., heads or fewer, m, width]``.
        value: ``[..., heads or fewer, m, width]``.
        attn_mask: Added to the scores, or true where they count.
        dropout_p: Must be 0, as it is in eval mode.
        is_causal: Whether a query sees only the keys up to its own place.
        scale: Of the scores; by default one over the root of the width.
        enable_gqa: Whether several heads share one of keys and values.
    """
    assert dropout_p == 0.0
    kept = query.dtype
    if kept in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    factor = abs(scale) ** 0.5
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    query = query * (factor if scale > 0 else -factor)
    scores = query @ (key.transpose(-2, -1) * factor)
    if is_causal:
        attn_mask = torch.ones(
            scores.shape[-2:], dtype=torch.bool, device=query.device
        ).tril()
    if attn_mask is not None:
        scores = scores + _added(attn_mask, kept)
    weights = torch.ops.aten._safe_softmax(scores, -1)
    output: Tensor = (weights @ value).to(kept)
    return output


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of truth values as one of numbers that are added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, -torch.inf).to(dtype)
