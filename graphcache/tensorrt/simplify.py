"""Simplifications of a graph that is to become an engine, exact in every bit.

Each says what a graph does in operators that TensorRT has good layers for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphcache.ops import is_pure
from graphcache.passes.dead_code import erase_dead_nodes
from graphcache.program import fake_value

_aten = torch.ops.aten


def drop_layouts(graph: fx.Graph) -> None:
    """Forget how values lie in memory: an engine takes and gives dense tensors.

    A copy into a place is then what it copies; TensorRT has no copy that spreads.
    """
    for node in list(graph.nodes):
        if node.target is _aten.view.default:
            # What was laid out for a view need not be any more.
            node.target = _aten.reshape.default
        if node.target not in (_aten.copy.default, _aten.fill.Tensor):
            continue
        place, value = fake_value(node), node.args[1]
        with graph.inserting_before(node):
            if fake_value(value).dtype != place.dtype:
                value = cast(graph, value, place.dtype)
            if fake_value(value).shape != place.shape:
                value = graph.call_function(
                    _aten.expand.default, (value, list(place.shape))
                )
                value.meta = dict(node.meta)
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def join_slices(graph: fx.Graph) -> None:
    """Join what is written slice by slice: a value where all of it is written anew.

    Rotary embeddings write even and odd elements into an empty tensor. Converted as
    they stand, those are scatters with an index for each element.
    """
    # The last write first: it holds what earlier ones wrote.
    for node in reversed(list(graph.nodes)):
        parts = _written_parts(node) if node.users else None
        if parts is None:
            continue
        dim = _scatter(node)[1] % fake_value(node).ndim
        shape = list(fake_value(node).shape)
        apart = [*shape[:dim], -1, len(parts), *shape[dim + 1 :]]
        with graph.inserting_before(node):
            stacked = graph.call_function(_aten.stack.default, (parts, dim + 1))
            joined = graph.call_function(_aten.reshape.default, (stacked, shape))
        stacked.meta, joined.meta = dict(node.meta), dict(node.meta)
        set_type(stacked, fake_value(node).reshape(apart).shape, fake_value(node).dtype)
        node.replace_all_uses_with(joined)
        graph.erase_node(node)


def _written_parts(node: fx.Node) -> list[Any] | None:
    """Every n-th element from 0, from 1 and so on, if all of them are written."""
    if node.target is not _aten.slice_scatter.default:
        return None
    _, dim, step = _scatter(node)
    size = fake_value(node).shape[dim]
    parts: dict[int, Any] = {}
    value: Any = node
    while isinstance(value, fx.Node) and value.target is _aten.slice_scatter.default:
        source, *rest = _scatter(value)
        places: Any = (*value.args, None, None, None, None)
        start, end = places[3:5]
        if rest != [dim, step] or (end is not None and end < size):
            break
        parts.setdefault(start or 0, source)
        value = value.args[0]
    whole = step > 1 and not size % step and set(range(step)) <= set(parts)
    return [parts[start] for start in range(step)] if whole else None


def _scatter(node: fx.Node) -> tuple[Any, int, int]:
    """What a `slice_scatter` writes, along which dimension, and in which step."""
    args: Any = node.args
    return (
        args[1],
        args[2] if len(args) > 2 else 0,
        args[5] if len(args) > 5 else 1,
    )


def fold_constants(module: fx.GraphModule) -> None:
    """Work out what depends on no input, in the precision that it is written in."""
    free: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "call_function" and is_pure(node):
            if all(value in free for value in node.all_input_nodes):
                free.add(node)
    edge = [n for n in free if not is_tuple(n) and any(u not in free for u in n.users)]
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    known: dict[fx.Node, Any] = {}
    for node in sorted(free, key=order.__getitem__):
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    for place, node in enumerate(sorted(edge, key=order.__getitem__)):
        name = f"constant_{place}"
        module.register_buffer(name, known[node])
        with module.graph.inserting_before(node):
            held = module.graph.get_attr(name)
        held.meta = dict(node.meta)
        node.replace_all_uses_with(held, lambda user: user not in free)
    erase_dead_nodes(module.graph)


def is_tuple(node: fx.Node) -> bool:
    """Whether the node gives several values."""
    return not isinstance(fake_value(node), Tensor)


def cast(graph: fx.Graph, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A value in another dtype."""
    node = graph.call_function(_aten._to_copy.default, (value,), {"dtype": dtype})
    node.meta = dict(value.meta)
    set_type(node, fake_value(value).shape, dtype)
    return node


def set_type(node: fx.Node, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Declare what a node gives: a dense tensor."""
    value: Any = fake_value(node)
    with value.fake_mode:
        fake = torch.empty(tuple(shape), dtype=dtype, device=value.device)
    node.meta = {**node.meta, "val": fake}
