"""Dataflow: what reaches what, and which nodes are one module call."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from torch import Tensor, fx

from graphcache.capture import scopes
from graphcache.program import fake_value, is_getitem


def nodes_by_call(graph: fx.Graph) -> dict[str, list[fx.Node]]:
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
    """What the nodes read from outside, in order of first use.

    The functions that a node is given are part of it.
    """
    inside = dict.fromkeys(nodes)
    found: dict[fx.Node, None] = {}
    for node in inside:
        for operand in node.all_input_nodes:
            if operand not in inside and operand.op != "get_attr":
                found[operand] = None
    return list(found)


def results_of(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Which of the nodes are read outside, in graph order."""
    inside = dict.fromkeys(nodes)
    return [node for node in inside if any(user not in inside for user in node.users)]


def descendants(roots: Iterable[fx.Node]) -> set[fx.Node]:
    """Every node that depends on a root, the roots aside."""
    found: set[fx.Node] = set()
    pending = list(roots)
    while pending:
        for user in pending.pop().users:
            if user not in found:
                found.add(user)
                pending.append(user)
    return found


def ancestors(roots: Iterable[fx.Node]) -> set[fx.Node]:
    """The roots and every node that they depend on."""
    found: set[fx.Node] = set()
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def with_items(nodes: set[fx.Node]) -> set[fx.Node]:
    """The nodes and the items of the tuples among them: a tuple has no life alone."""
    items = {user for node in nodes for user in node.users if is_getitem(user)}
    return nodes | {
        item
        for item in items
        if not isinstance(fake_value(item.all_input_nodes[0]), Tensor)
    }


def is_convex(nodes: Collection[fx.Node]) -> bool:
    """Whether no path leaves the nodes and comes back: they can run as one step."""
    inside = set(nodes)
    outside = [user for node in inside for user in node.users if user not in inside]
    after = descendants(outside) | set(outside)
    return all(operand not in after for operand in operands_of(inside))


def sort_topologically(graph: fx.Graph) -> None:
    """Reorder the nodes so that operands come first, and else as they stood."""
    nodes = list(graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    waiting = {node: len(node.all_input_nodes) for node in nodes}
    ready = [place[node] for node in nodes if not waiting[node]]
    heapq.heapify(ready)
    last = graph._root
    while ready:
        node = nodes[heapq.heappop(ready)]
        if last.next is not node:
            last.append(node)
        last = node
        for user in node.users:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, place[user])
