"""Attention: products of queries, keys and values, and what flows into them.

An attention region is the innermost module call that encloses an attention product.
Its flow follows from what reaches queries and keys: the same operands (self), the same
and several results (joint), or sequences the queries do not see (cross).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from graphcache.capture import Scope, scopes

_aten = torch.ops.aten
_FUSED = re.compile(r"attention|attn")
_SOFTMAX = (_aten.softmax.int, _aten._softmax.default)
_PRODUCTS = (_aten.bmm.default, _aten.matmul.default, _aten.baddbmm.default)


@dataclass(frozen=True)
class Product:
    """An attention product: the node and the roots of its queries and keys."""

    node: fx.Node
    query: fx.Node
    key: fx.Node


def attention_products(graph: fx.Graph) -> Iterator[Product]:
    """Fused attention ops, and softmaxes between two matrix products."""
    for node in graph.nodes:
        if is_fused_attention(node):
            yield Product(node, node.args[0], node.args[1])
        elif node.target in _SOFTMAX:
            scores = _scores(node)
            if scores is not None:
                factors = [arg for arg in scores.args if isinstance(arg, fx.Node)]
                yield Product(node, factors[-2], factors[-1])


def is_fused_attention(node: fx.Node) -> bool:
    """Whether the node is one operator over queries, keys and values.

    ATen has several, and attention libraries register their own; all say so in their
    names and take the three tensors first.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or len(node.args) < 3:
        return False
    tensors = all(isinstance(arg, fx.Node) for arg in node.args[:3])
    return tensors and _FUSED.search(node.target._schema.name) is not None


def _scores(softmax: fx.Node) -> fx.Node | None:
    """The product that feeds a softmax through elementwise ops, if there is one."""
    seen: set[fx.Node] = set()
    pending = list(softmax.all_input_nodes)
    while pending:
        node = pending.pop()
        if node in seen or node.op != "call_function" or innermost(node) is None:
            continue
        seen.add(node)
        if node.target in _PRODUCTS:
            return node
        if innermost(node) == innermost(softmax):
            pending.extend(node.all_input_nodes)
    return None


def innermost(node: fx.Node) -> Scope | None:
    """The innermost module call that encloses a node."""
    enclosing = scopes(node)
    return enclosing[-1] if enclosing else None


def reaching(node: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """Operands of a region from which `node` is computed."""
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in inside:
            pending.extend(current.all_input_nodes)
        else:
            found.add(current)
    return found


def attention_flow(
    product: Product, inside: set[fx.Node], state: set[str], results: int
) -> str:
    """Classify attention as ``"self"``, ``"joint"`` or ``"cross"`` by dataflow."""
    sources = [
        {node for node in reaching(root, inside) if node.name not in state}
        for root in (product.query, product.key)
    ]
    query, key = sources
    if key - query and query - key:
        return "cross"
    return "joint" if results > 1 else "self"
