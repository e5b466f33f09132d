"""Attention: products of queries, keys and values, and what flows into them.

An attention region is the innermost module call that encloses an attention product
and the projections of its queries and keys. Its flow follows from the sequences that
reach those: different ones (cross), the same (self), or the same several (joint).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import fx

from graphcache.analysis.blocks import block_scope
from graphcache.analysis.products import is_quantised_product
from graphcache.capture.labels import Scope, scopes
from graphcache.ops import is_flex_attention

_aten = torch.ops.aten
_FUSED = re.compile(r"attention|attn")
_CLASS = re.compile(r"Attention|Attn")
_SOFTMAX = (_aten.softmax.int, _aten._softmax.default)
_PRODUCTS = (_aten.bmm.default, _aten.matmul.default, _aten.baddbmm.default)
_SUMS = (_aten.baddbmm.default, _aten.addmm.default)
_PROJECTIONS = (
    *_PRODUCTS,
    *(_aten.linear.default, _aten.mm.default, _aten.addmm.default),
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default),
)
# Nodes that dequantise one weight, at most: what takes more comes from the call.
_LONGEST = 100


@dataclass(frozen=True)
class Product:
    """An attention product: the node and the roots of its queries and keys."""

    node: fx.Node
    query: fx.Node
    key: fx.Node


def attention_products(
    graph: fx.Graph, state: Collection[str] = ()
) -> Iterator[Product]:
    """Fused attention ops, softmaxes between two matrix products, and linear attention.

    Args:
        graph: The graph.
        state: Names of its weights and constants.
    """
    found: set[str | None] = set()
    chains: list[tuple[str | None, Product]] = []
    for node in graph.nodes:
        product = _product(node)
        key = _key(node)
        if product is not None:
            found.add(key)
            yield product
        elif key not in found:
            chain = _chain(node, state)
            if chain is not None:
                chains.append((key, chain))
    for key, chain in chains:
        if key not in found:
            found.add(key)
            yield chain


def _product(node: fx.Node) -> Product | None:
    if is_fused_attention(node):
        query, key = node.args[:2]
        assert isinstance(query, fx.Node)
        assert isinstance(key, fx.Node)
        return Product(node, query, key)
    scores = _scores(node) if node.target in _SOFTMAX else None
    if scores is None:
        return None
    query, key = _factors(scores)
    return Product(node, query, key)


def is_fused_attention(node: fx.Node) -> bool:
    """Whether the node is one operator over queries, keys and values.

    ATen has several, and attention libraries register their own; all say so in their
    names and take the three tensors first.
    """
    if is_flex_attention(node):
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or len(node.args) < 3:
        return False
    tensors = all(isinstance(arg, fx.Node) for arg in node.args[:3])
    return tensors and _FUSED.search(node.target._schema.name) is not None


def _scores(softmax: fx.Node) -> fx.Node | None:
    """The product that feeds a softmax through elementwise ops, if there is one."""
    return next(_products_behind(softmax.all_input_nodes, innermost(softmax)), None)


def _chain(node: fx.Node, state: Collection[str]) -> Product | None:
    """A product of the queries with one of keys and values: linear attention.

    It is told from other chains of products by the class of its module.
    """
    scope = innermost(node)
    if node.target not in _PRODUCTS or scope is None:
        return None
    if not _CLASS.search(scope.module_class) or _is_projection(node, state):
        return None
    factors = _factors(node)
    for factor, query in zip(factors, reversed(factors), strict=True):
        for inner in _products_behind([factor], scope):
            if innermost(inner) == scope and not _is_projection(inner, state):
                return Product(node, query, _factors(inner)[-1])
    return None


def _products_behind(nodes: Sequence[object], scope: Scope | None) -> Iterator[fx.Node]:
    """The nearest products behind some nodes, through what one module call computes."""
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        if node.op != "call_function" or innermost(node) is None:
            continue
        seen.add(node)
        if node.target in _PRODUCTS:
            yield node
        elif innermost(node) == scope:
            pending.extend(node.all_input_nodes)


def innermost(node: fx.Node) -> Scope | None:
    """The innermost module call that encloses a node."""
    enclosing = scopes(node)
    return enclosing[-1] if enclosing else None


def _key(node: fx.Node) -> str | None:
    scope = innermost(node)
    return None if scope is None else scope.key


def attention_scope(
    product: Product, calls: Mapping[str, list[fx.Node]], state: Collection[str]
) -> Scope | None:
    """The module call whose region the product is.

    A module that is given queries and keys leaves their projections to the one around
    it, as far as that is a part of a block.

    Args:
        product: The product.
        calls: The nodes of every module call, by its key.
        state: Names of weights and constants.
    """
    enclosing = scopes(product.node)
    block = block_scope(product.node)
    start = 1 + enclosing.index(block) if block in enclosing else 0
    for scope in reversed(enclosing[start:]):
        inside = set(calls[scope.key])
        if any(_projected(r, inside, state) for r in (product.query, product.key)):
            return scope
    return innermost(product.node)


def attention_flow(
    product: Product,
    inside: set[fx.Node],
    state: Collection[str],
    results: Sequence[fx.Node],
) -> str:
    """Classify attention as ``"self"``, ``"joint"`` or ``"cross"`` by dataflow.

    Args:
        product: The product.
        inside: The nodes of its region.
        state: Names of weights and constants.
        results: What leaves the region.
    """
    query, key = (
        _projected(root, inside, state) or _sources(root, inside, state)
        for root in (product.query, product.key)
    )
    if query and key and query.isdisjoint(key):
        return "cross"
    # What a module works out of positions alone and hands on is no sequence.
    given = [r for r in results if _sources(r, inside, state) & (query | key)]
    joined = len(given) > 1 or _is_joined(product.query, inside, state, query)
    return "joint" if joined else "self"


def _behind(root: fx.Node, inside: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes of a region that `root` is computed from, and the operands."""
    seen: set[fx.Node] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            if node in inside:
                pending.extend(node.all_input_nodes)
    return seen & inside, seen - inside


def _sources(
    root: fx.Node, inside: set[fx.Node], state: Collection[str]
) -> set[fx.Node]:
    """Operands of a region, weights aside, from which `root` is computed."""
    return {node for node in _behind(root, inside)[1] if node.name not in state}


def _projected(
    root: fx.Node, inside: set[fx.Node], state: Collection[str]
) -> set[fx.Node]:
    """Operands of a region that reach `root` through a product with a weight.

    Those are sequences; tables of positions and modulations are not projected.
    """
    found: set[fx.Node] = set()
    for node in _behind(root, inside)[0]:
        if node.target in _PROJECTIONS or is_quantised_product(node):
            sides = [_sources(side, inside, state) for side in _factors(node)]
            if len(sides) > 1 and not all(sides):
                found = found.union(*sides)
    return found


def _factors(product: fx.Node) -> list[fx.Node]:
    if is_quantised_product(product):
        # Its scales are factors as well.
        return product.all_input_nodes
    factors = product.args[1:3] if product.target in _SUMS else product.args[:2]
    return [factor for factor in factors if isinstance(factor, fx.Node)]


def _is_projection(product: fx.Node, state: Collection[str]) -> bool:
    """Whether one factor is a weight, or made of nothing else."""
    factors = _factors(product)
    return any(_is_state(factor, state) for factor in factors)


def _is_state(node: fx.Node, state: Collection[str]) -> bool:
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        pending.extend(node.all_input_nodes)
        made = node.op == "call_function" and node.all_input_nodes
        if len(seen) > _LONGEST or not (made or node.name in state):
            return False
    return True


def _is_joined(
    root: fx.Node,
    inside: set[fx.Node],
    state: Collection[str],
    streams: set[fx.Node],
) -> bool:
    """Whether different sequences are concatenated on the way to `root`."""
    for node in _behind(root, inside)[0]:
        if node.target is not _aten.cat.default:
            continue
        parts = [_sources(part, inside, state) & streams for part in node.args[0]]  # type: ignore[union-attr, arg-type]
        if any(a - b and b - a for a, b in combinations(parts, 2)):
            return True
    return False
