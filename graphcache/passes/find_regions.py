"""find-regions: which nodes are one call of one attention module.

Regions come from the graph alone: the module calls that enclose each node, and the
dataflow between them. An attention region is the innermost module call that encloses
an attention product. Its flow follows from what reaches queries and keys: the same
operands (self), the same and several results (joint), or sequences the queries do not
see (cross).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from graphcache.capture import Scope, scopes
from graphcache.passes.manager import PassResult
from graphcache.program import (
    InputKind,
    Program,
    Region,
    Stage,
    fake_value,
    is_getitem,
)

_aten = torch.ops.aten
_FUSED = re.compile(r"attention|attn")
_SOFTMAX = (_aten.softmax.int, _aten._softmax.default)
_PRODUCTS = (_aten.bmm.default, _aten.matmul.default, _aten.baddbmm.default)
_STATE = (InputKind.WEIGHT, InputKind.CONSTANT)


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
        if node in seen or node.op != "call_function" or _innermost(node) is None:
            continue
        seen.add(node)
        if node.target in _PRODUCTS:
            return node
        if _innermost(node) == _innermost(softmax):
            pending.extend(node.all_input_nodes)
    return None


def _innermost(node: fx.Node) -> Scope | None:
    enclosing = scopes(node)
    return enclosing[-1] if enclosing else None


def nodes_by_scope(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The nodes of every module call, by its key, in graph order.

    A value taken out of a multi-output node belongs to the call that made that node,
    even where the caller's code takes it out.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        keys = dict.fromkeys(scope.key for scope in scopes(node))
        if is_getitem(node):
            keys |= dict.fromkeys(scope.key for scope in scopes(node.args[0]))
        for key in keys:
            calls.setdefault(key, []).append(node)
    return calls


def operands_of(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """What the nodes read from outside, in order of first use."""
    inside = set(nodes)
    found: dict[fx.Node, None] = {}
    for node in nodes:
        for operand in node.all_input_nodes:
            if operand not in inside:
                found[operand] = None
    return list(found)


def results_of(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Which of the nodes are read outside, in graph order."""
    inside = set(nodes)
    return [node for node in nodes if any(user not in inside for user in node.users)]


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


def is_contiguous_call(
    nodes: list[fx.Node], operands: list[fx.Node], order: dict[fx.Node, int]
) -> bool:
    """Whether every operand comes before every outside reader: the call is one step."""
    inside = set(nodes)
    last_operand = max((order[node] for node in operands), default=-1)
    readers = [
        order[user] for node in nodes for user in node.users if user not in inside
    ]
    return last_operand < min(readers, default=len(order))


def find_attention(program: Program) -> tuple[Region, ...]:
    """Every attention region of the program, in graph order."""
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    calls = nodes_by_scope(program.graph)
    state = {entry.name for entry in program.inputs if entry.kind in _STATE}
    regions: dict[str, Region] = {}
    for product in attention_products(program.graph):
        scope = _innermost(product.node)
        if scope is None or scope.key in regions or not scope.path:
            continue
        region = _region(calls[scope.key], product, scope, state, order)
        if region is not None:
            regions[scope.key] = region
    return tuple(_number_calls(list(regions.values())))


def _region(
    nodes: list[fx.Node],
    product: Product,
    scope: Scope,
    state: set[str],
    order: dict[fx.Node, int],
) -> Region | None:
    operands, results = operands_of(nodes), results_of(nodes)
    if not all(isinstance(fake_value(node), Tensor) for node in results):
        return None
    if not is_contiguous_call(nodes, operands, order):
        return None
    return Region(
        name=scope.path,
        path=scope.path,
        kind="attention",
        flow=attention_flow(product, set(nodes), state, len(results)),
        declares_cross=scope.declares_cross,
        module_class=scope.module_class,
        nodes=tuple(node.name for node in nodes),
        operands=tuple(node.name for node in operands),
        results=tuple(node.name for node in results),
    )


def _number_calls(regions: list[Region]) -> Iterator[Region]:
    """Tell further calls of one module apart by ``@1``, ``@2``, ..."""
    calls: dict[str, int] = {}
    for region in regions:
        count = calls.get(region.path, 0)
        calls[region.path] = count + 1
        if not count:
            yield region
        else:
            yield Region(**{**vars(region), "name": f"{region.path}@{count}"})


@dataclass(frozen=True)
class FindRegions:
    """Tag the program with its attention regions."""

    name: ClassVar[str] = "find-regions"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per region found."""
        regions = find_attention(program)
        if regions == program.regions:
            return PassResult(program, 0)
        return PassResult(program.evolve(regions=regions), len(regions))
