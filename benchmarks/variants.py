"""Other sizes, batches and text lengths of a call, found by asking the module itself.

The catalogue holds one call of each class. `variants` cuts its tensors in half along
the axes that belong to the size, the batch or the text (a batch of one is doubled), and
keeps a cut that the eager module accepts. Which axes belong together is not said
anywhere, so they are told by their extents and names and tried in turn; if the module
accepts no cut, its answer to the first one is the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphcache.signature import Call, CallSignature, with_tensors

AXES = ("size", "batch", "text")
_TEXT = re.compile(
    "encoder_hidden_states|encoder_input|text|prompt|caption|cap_feats|context"
    "|input_ids|kv"
)
_NOT_TEXT = re.compile(r"image|pooled|latents|timestep|audio")
_POSITIONS = re.compile(r"ids|rotary|freqs|grid|pos|offset")
Place = tuple[int, ...]
"""Which tensor leaf, which of its axes, and how much is kept of it if not half."""


@dataclass(frozen=True)
class Variant:
    """Another call of a class, or why there is none.

    Attributes:
        axis: One of `AXES`.
        inputs: Its keyword arguments; None if the module takes no other.
        reason: What the module says to the first cut that was tried.
    """

    axis: str
    inputs: dict[str, Any] | None
    reason: str = ""


def variants(module: nn.Module, inputs: dict[str, Any]) -> Iterator[Variant]:
    """One variant per axis.

    Args:
        module: The eager module; it is called.
        inputs: Keyword arguments of a call that it takes.
    """
    call = CallSignature(module.forward).bind((), dict(inputs))
    plain = _shapes(module, inputs)
    for axis in AXES:
        yield _first(module, call, axis, plain)


def _first(module: nn.Module, call: Call, axis: str, plain: list[Any]) -> Variant:
    """The first cut of an axis that the module accepts."""
    shapes = [tuple(tensor.shape) for tensor in call.tensors]
    reason = ""
    for places in _PLACES[axis](call.paths, shapes):
        for numbers in (False, True) if axis == "size" else (False,):
            cut = _cut(call, places, numbers)
            try:
                found = _shapes(module, cut)
            except Exception as error:  # The module's own answer.
                line = str(error).strip().splitlines() or [type(error).__name__]
                reason = reason or line[0][:100]
                continue
            # The text alone leaves the output's shape as it is.
            if axis == "text" or found != plain:
                return Variant(axis, cut)
    return Variant(axis, None, reason or "the call has no such axis")


def _shapes(module: nn.Module, inputs: dict[str, Any]) -> list[Any]:
    call = CallSignature(module.forward).bind((), dict(inputs))
    copied = with_tensors(call, [tensor.clone() for tensor in call.tensors])
    with torch.no_grad():
        output = module(**copied)
    return [x.shape for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]


def _cut(call: Call, places: Sequence[Place], numbers: bool) -> dict[str, Any]:
    """The call with half of some axes; an axis of one is doubled.

    Args:
        call: The call.
        places: The axes.
        numbers: Whether to halve the widths that it gives as numbers as well.
    """
    tensors = list(call.tensors)
    for index, axis, *kept in places:
        tensor, extent = tensors[index], tensors[index].shape[axis]
        if extent == 1:
            tensors[index] = torch.cat([tensor, tensor.flip(-1)], axis)
        else:
            length = kept[0] if kept else extent // 2
            tensors[index] = tensor.narrow(axis, 0, length).contiguous()
    values = with_tensors(call, tensors)
    if numbers:
        values = {key: _narrowed(key, value) for key, value in values.items()}
    return values


def _narrowed(name: str, value: Any) -> Any:
    """Half of a width that is given as a number, or as the last of three."""
    if type(value) is int and "width" in name:
        return max(1, value // 2)
    if isinstance(value, (list, tuple)):
        if len(value) == 3 and all(type(item) is int for item in value):
            return type(value)((*value[:2], max(1, value[2] // 2)))
        return type(value)(_narrowed(name, item) for item in value)
    return value


def _axes(shapes: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    """Every axis of every tensor, with its extent."""
    for index, shape in enumerate(shapes):
        for axis, extent in enumerate(shape):
            yield index, axis, extent


def _joint(extent: int, shapes: Sequence[Any]) -> list[Place]:
    """Axes along which a sequence of some extent is joined to another one."""
    known = {size for _, _, size in _axes(shapes)} | {1}
    return [
        (i, a, size - extent + extent // 2)
        for i, a, size in _axes(shapes)
        if size > extent and size - extent in known
    ]


def _batch(paths: Sequence[str], shapes: Sequence[Any]) -> Iterator[list[Place]]:
    extent = shapes[0][0] if shapes[0] else 0
    batched = [(i, a) for i, a, size in _axes(shapes) if a == 0 and size == extent]
    yield batched
    yield [(i, a) for i, a in batched if not _POSITIONS.search(paths[i])]
    yield [(i, a) for i, a in batched if len(shapes[i]) > 2 or "step" in paths[i]]


def _text(paths: Sequence[str], shapes: Sequence[Any]) -> Iterator[list[Place]]:
    for index, (path, shape) in enumerate(zip(paths, shapes, strict=True)):
        named = _TEXT.search(path) and not _NOT_TEXT.search(path)
        if not named or "mask" in path or not shape:
            continue
        axis = len(shape) - (1 if "ids" in path or len(shape) == 1 else 2)
        if shape[axis] < 2:
            continue
        own = [(index, axis)]
        alike = [
            (i, a)
            for i, a, size in _axes(shapes)
            if size == shape[axis] and (i != index or a == axis)
        ]
        yield [p for p in alike if p in own or _goes_with_text(p, paths, shapes)]
        yield own
        yield alike
        joint = _joint(shape[axis], shapes)
        yield [*own, *joint]
        yield [*alike, *joint]


def _goes_with_text(place: Place, paths: Sequence[str], shapes: Sequence[Any]) -> bool:
    path = paths[place[0]]
    channels = place[1] == len(shapes[place[0]]) - 1 and "hidden" in path
    return re.search("mask|txt|text|encoder", path) is not None and not channels


def _size(paths: Sequence[str], shapes: Sequence[Any]) -> Iterator[list[Place]]:
    main = shapes[0]
    # Tokens; or a row of a picture, whose channels may come last.
    last = len(main) - 1
    axes = {1: [0], 2: [0], 3: [1, 2]}.get(len(main), [last, last - 1])
    area = prod(main[-2:]) if len(main) > 3 else 0
    counts = {area * f // p for f in {1, *main[1:3]} for p in (1, 4, 16)}
    for axis in axes:
        own = [(0, axis)]
        others = [(i, a, size) for i, a, size in _axes(shapes) if i and size > 1]
        alike = [
            (i, a)
            for i, a, size in others
            if size == main[axis] and (len(main) == 3 or a == len(shapes[i]) - 1)
        ]
        tokens = [(i, a) for i, a, size in others if size in counts]
        inner = [(i, a) for i, a in tokens if a < max(1, len(shapes[i]) - 1)]
        positions = [(i, a) for i, a in alike if _POSITIONS.search(paths[i])]
        pictures = [(i, a) for i, a in alike if len(shapes[i]) == len(main)]
        tried = (positions, pictures, [], alike, inner, [*pictures, *inner], tokens)
        joint = _joint(main[axis] if area == 0 else area // 4, shapes)
        for group in (*tried, [*alike, *inner], joint, [*alike, *joint]):
            yield [*own, *dict.fromkeys(group)]


_PLACES: dict[str, Callable[..., Iterator[list[Place]]]] = {
    "size": _size,
    "batch": _batch,
    "text": _text,
}
