"""Feed-forward: a module call of two or more products with a nonlinearity between.

It is the outermost such call inside a block that holds no attention and gives back a
tensor of the type of one that it takes: what is added to a stream.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from graphcache.analysis.products import is_quantised_product
from graphcache.program import static_type

_aten = torch.ops.aten
_PRODUCTS = tuple(
    getattr(_aten, name).default
    for name in ("linear", "matmul", "bmm", "mm", "addmm", "conv1d", "conv2d", "conv3d")
)
_NONLINEAR = tuple(
    getattr(_aten, name).default
    for name in (
        "gelu",
        "silu",
        "relu",
        "sigmoid",
        "tanh",
        "hardswish",
        "mish",
        "leaky_relu",
        "softplus",
        "hardtanh",
        "elu",
    )
)


def is_feed_forward(nodes: Iterable[fx.Node], latents: set[fx.Node]) -> bool:
    """Whether the nodes of one module call, without attention, are a feed-forward.

    Args:
        nodes: The nodes of the call.
        latents: Every node that depends on the latents.
    """
    body = list(nodes)
    products = sum(n.target in _PRODUCTS or is_quantised_product(n) for n in body)
    if products < 2 or not any(node.target in _NONLINEAR for node in body):
        return False
    inside = set(body)
    taken = {
        static_type(operand)
        for node in body
        for operand in node.all_input_nodes
        if operand not in inside and operand in latents
    }
    given = {
        static_type(node)
        for node in body
        if any(user not in inside for user in node.users)
    }
    return bool((given & taken) - {None})
