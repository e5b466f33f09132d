"""The residual path: which earlier value a later one continues.

A transformer's stream is a sum that every block adds to. Walking back through sums and
rearrangements alone (concatenation, slices, reshapes), and through nothing that
computes, leads from the end of a stream to its beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx

from graphcache.program import fake_value, is_getitem, static_type

_aten = torch.ops.aten
_SUMS = (_aten.add.Tensor, _aten.add_.Tensor, _aten.sub.Tensor)
_MOVES = tuple(
    overload
    for name in (
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "transpose",
        "unsqueeze",
        "squeeze",
        "expand",
        "clone",
        "contiguous",
        "_to_copy",
        "alias",
        "flatten",
        "unflatten",
        "constant_pad_nd",
        "select",
        "index",
        "index_select",
        "slice",
        "to",
        "type_as",
    )
    for overload in (
        getattr(getattr(_aten, name), variant)
        for variant in getattr(_aten, name).overloads()
    )
)
_SPLITS: tuple[object, ...] = (
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.chunk.default,
    _aten.unbind.int,
)
REARRANGED: tuple[object, ...] = (*_SPLITS, *_MOVES)
"""Operators that lay a value out anew or cut pieces out of it."""
Span = tuple[int, int, int]
"""A part of a value: dimension, start, length."""


def continued(value: fx.Node, earlier: Collection[fx.Node]) -> list[fx.Node]:
    """The values of `earlier` that `value` continues, the nearest first.

    Args:
        value: Where to start.
        earlier: Where to stop.
    """
    found: dict[fx.Node, None] = {}
    seen: set[tuple[fx.Node, Span | None]] = set()
    pending: list[tuple[fx.Node, Span | None]] = [(value, None)]
    while pending:
        node, span = pending.pop(0)
        if (node, span) in seen:
            continue
        seen.add((node, span))
        if node in earlier and node is not value:
            found[node] = None
        else:
            pending.extend(_previous(node, span))
    return list(found)


def origins(value: fx.Node) -> set[fx.Node]:
    """Where the residual path of a value begins: what it is the sum of."""
    found: set[fx.Node] = set()
    seen: set[tuple[fx.Node, Span | None]] = set()
    pending: list[tuple[fx.Node, Span | None]] = [(value, None)]
    while pending:
        state = pending.pop()
        if state in seen:
            continue
        seen.add(state)
        previous = list(_previous(*state))
        pending.extend(previous)
        if not previous:
            found.add(state[0])
    return found


def pair(value: fx.Node, earlier: Collection[fx.Node]) -> fx.Node | None:
    """The one value of `earlier` that is the same stream as `value`.

    It is the nearest that `value` continues and that has its type, or, if the residual
    path is interrupted, the only one of its type.
    """
    wanted = static_type(value)
    if wanted is None:
        return None
    alike = [n for n in earlier if n is not value and static_type(n) == wanted]
    if not alike:
        return None
    linked = [node for node in continued(value, alike) if node in alike]
    if linked:
        return linked[0]
    return alike[0] if len(alike) == 1 else None


def _previous(node: fx.Node, span: Span | None) -> Iterator[tuple[fx.Node, Any]]:
    if node.op != "call_function":
        return
    if node.target in _SUMS:
        yield from ((arg, span) for arg in node.all_input_nodes)
    elif node.target is _aten.cat.default:
        yield from _parts(node, span)
    elif is_getitem(node) and node.args[0].target in _SPLITS:  # type: ignore[union-attr]
        yield _piece(node, span)
    elif node.target is _aten.slice.Tensor:
        yield _slice(node, span)
    elif node.target in _MOVES:
        yield node.all_input_nodes[0], None


def _parts(node: fx.Node, span: Span | None) -> Iterator[tuple[fx.Node, Span | None]]:
    """The operands of a concatenation that hold the wanted part."""
    operands: Any = node.args[0]
    rank = fake_value(node).ndim
    dim = int(node.args[1]) % rank if len(node.args) > 1 else 0  # type: ignore[arg-type]
    begin = 0
    for operand in operands:
        size = int(fake_value(operand).shape[dim])
        if span is None or span[0] != dim:
            yield operand, None
        elif begin < span[1] + span[2] and span[1] < begin + size:
            start = max(span[1] - begin, 0)
            yield operand, (dim, start, min(span[1] + span[2] - begin, size) - start)
        begin += size


def _piece(node: fx.Node, span: Span | None) -> tuple[fx.Node, Span | None]:
    """The source of one piece of a split, and where the piece lies in it."""
    split: Any = node.args[0]
    index = int(node.args[1])  # type: ignore[arg-type]
    source = split.args[0]
    if split.target is _aten.unbind.int:
        return source, None
    dim = int(split.args[2]) if len(split.args) > 2 else int(split.kwargs.get("dim", 0))
    dim %= fake_value(source).ndim
    sizes = [int(piece.shape[dim]) for piece in fake_value(split)]
    return source, _within((dim, sum(sizes[:index]), sizes[index]), span)


def _slice(node: fx.Node, span: Span | None) -> tuple[fx.Node, Span | None]:
    source: Any = node.args[0]
    given: tuple[Any, ...] = (*node.args[1:], *(0, 0, None, 1)[len(node.args) - 1 :])
    dim, start, _, stride = given
    value = fake_value(source)
    dim = int(dim) % value.ndim
    if stride != 1 or not isinstance(start, (int, type(None))):
        return source, None
    size = int(value.shape[dim])
    begin = start or 0
    begin = max(begin + size, 0) if begin < 0 else min(begin, size)
    length = int(fake_value(node).shape[dim])
    return source, _within((dim, begin, length), span)


def _within(outer: Span, inner: Span | None) -> Span:
    """A part of a part, as far as it can be told."""
    if inner is None or inner[0] != outer[0]:
        return outer
    return outer[0], outer[1] + inner[1], inner[2]
