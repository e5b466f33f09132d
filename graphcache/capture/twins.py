"""Twins: methods of known modules, written so that they can be traced.

A module may ask the host for a value that changes at every step where the graph could
have it: how many tokens go to each expert. Or it may keep tensors of a call in itself.
A twin does neither. It stands in for the module's own method while the module is
traced, and gives the same result bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_Twin = Callable[..., Any]


def hidream_moe_infer(
    module: Any, x: Tensor, flat_expert_indices: Tensor, flat_expert_weights: Tensor
) -> Tensor:
    """Each expert on its tokens: what diffusers cuts on the host is chosen by a mask.

    Args:
        module: The mixture of experts.
        x: Tokens, ``[n, c]``.
        flat_expert_indices: The experts of each token, ``[n * k]``.
        flat_expert_weights: Their weights, ``[n * k, 1]``.
    """
    # The order of tokens is that of the original, so that products round alike.
    order = flat_expert_indices.argsort()
    experts = flat_expert_indices[order]
    total = torch.zeros_like(x)
    for index, expert in enumerate(module.experts):
        rows = order[experts == index]
        tokens = rows // module.num_activated_experts
        given = expert(x[tokens])
        given = given.mul_(flat_expert_weights[rows])
        places = tokens.view(-1, 1).repeat(1, x.shape[-1])
        total = total.to(given.dtype).scatter_reduce(0, places, given, reduce="sum")
    return total


def bitsandbytes_int8_linear(module: Any, x: Tensor) -> Tensor:
    """A product with rows of int8, without the state that the layer keeps of it.

    Args:
        module: The layer; its weight is a stand-in that has the scales of the rows.
        x: ``[..., k]``.
    """
    ops: Any = torch.ops.bitsandbytes
    weight, threshold = module.weight, module.state.threshold
    bias = None if module.bias is None else module.bias.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x
    quantise = ops.int8_vectorwise_quant.default
    given, scales, outliers = quantise(rows.to(torch.float16), threshold)
    if threshold > 0.0:
        product = ops.int8_mixed_scaled_mm.default
        held = weight.SCB
        out: Tensor = product(rows, given, weight, scales, held, outliers, bias)[0]
    else:
        multiply = ops.int8_scaled_mm.default
        out = multiply(given, weight, scales, weight.SCB, bias=bias, dtype=rows.dtype)
    return out.reshape(*x.shape[:-1], weight.shape[0]) if x.ndim == 3 else out


_HIDREAM = "diffusers.models.transformers.transformer_hidream_image"
TWINS: Mapping[str, Mapping[str, _Twin]] = {
    f"{_HIDREAM}.MOEFeedForwardSwiGLU": {"moe_infer": hidream_moe_infer},
    "bitsandbytes.nn.modules.Linear8bitLt": {"forward": bitsandbytes_int8_linear},
}
"""By class and method. A class is one exactly: a subclass may mean something else."""


@contextmanager
def twins(module: nn.Module) -> Iterator[None]:
    """Let twins stand in for the methods of a module and its parts."""
    placed: list[tuple[nn.Module, str]] = []
    try:
        for part in module.modules():
            kind = type(part)
            known = TWINS.get(f"{kind.__module__}.{kind.__qualname__}", {})
            for name, twin in known.items():
                # A method of the instance's own was put there on purpose.
                if name not in part.__dict__:
                    part.__dict__[name] = MethodType(twin, part)
                    placed.append((part, name))
        yield
    finally:
        for part, name in placed:
            del part.__dict__[name]
