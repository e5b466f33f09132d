"""Torch functions by what they ask of values, for `graphcache.capture.known`.

Some give the host a number. Some give a tensor whose shape depends on values. Some take
a number as a tensor. What else there is only computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphcache.capture.modes import untraced

Settle = Callable[[Tensor], Tensor | None]
"""The value of a tensor if it is to be compiled in; None if it is to stay."""
Bound = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _named(*names: str) -> frozenset[Any]:
    """The functions and methods of these names, as far as torch has them."""
    owners = (torch, Tensor, torch.nn.functional)
    return frozenset(
        getattr(owner, name)
        for owner in owners
        for name in names
        if hasattr(owner, name)
    )


READS = frozenset(
    {
        *_named("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
        *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
        *(Tensor.__complex__, Tensor.__contains__, Tensor.__array__),
    }
)
"""What gives the host a value."""
RANDOM = _named(
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like"),
    *("randperm", "normal", "normal_", "bernoulli", "bernoulli_", "multinomial"),
    *("poisson", "uniform_", "random_", "exponential_", "geometric_", "cauchy_"),
    *("log_normal_", "dropout", "dropout_", "alpha_dropout", "feature_dropout"),
    *("feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "rrelu"),
    *("rrelu_", "gumbel_softmax", "binomial"),
)
"""What draws random numbers."""
WRITES = frozenset({Tensor.__setitem__})
"""What writes to its first operand and gives nothing."""
TEMPLATE = {
    **dict.fromkeys(_named("zeros_like", "ones_like", "full_like"), 0),
    **dict.fromkeys(_named("new_zeros", "new_ones", "new_full", "new_tensor"), 0),
    **dict.fromkeys(_named("to", "type_as", "expand_as", "view_as", "reshape_as"), 1),
}
"""By function, the place of an operand of which the type alone matters."""
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_ITEMS = (Tensor.__getitem__, Tensor.__setitem__)
_CHOOSING = _named("nonzero", "argwhere", "unique", "unique_consecutive", "bincount")
_WHERE = _named("where")
_REPEAT = _named("repeat_interleave")
_MASKED_SELECT = _named("masked_select")
_MAKES = _named("tensor", "as_tensor", "new_tensor")
_SIZES = _named(
    *("arange", "zeros", "ones", "full", "empty", "eye", "linspace", "new_zeros"),
    *("new_ones", "new_full", "new_empty", "view", "reshape", "expand", "repeat"),
    *("tile", "narrow", "select", "split", "split_with_sizes", "unflatten", "pad"),
    *("chunk", "roll"),
)


def traceable(
    func: Callable[..., Any], args: Sequence[Any]
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """The same call by a function that a trace can follow.

    A tensor's ``.data`` and a deep copy of it are tensors that no operator has made:
    the trace would take them for constants.
    """
    if func == _DATA:
        return Tensor.detach, args
    if func == _SET_DATA:
        return _set_data, args
    if func is Tensor.__deepcopy__:
        return Tensor.clone, args[:1]
    return func, args


def _set_data(tensor: Tensor, value: Tensor) -> Tensor:
    return tensor.set_(value.detach())  # type: ignore[call-overload, no-any-return]


def chooses_shape(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Whether the shape of what this gives depends on values."""
    if func in _CHOOSING:
        return True
    if func in _WHERE:
        return len(args) + len(kwargs) == 1
    if func in _REPEAT:
        return len(args) == 1 and "repeats" not in kwargs
    # From a list of tensors each is read, from one tensor it is a copy.
    return func in _MAKES and any(
        isinstance(arg, (list, tuple)) and any(True for _ in tensors_in(arg))
        for arg in args
    )


def settled(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    number: Settle,
    mask: Settle,
) -> Bound:
    """The same call with numbers that are tensors, masks and counts compiled in.

    Args:
        func: The function.
        args: Its operands.
        kwargs: Its options.
        number: Gives the value of a tensor of one integer.
        mask: Gives the value of a mask or of counts.
    """
    if func in _ITEMS:
        index = _settled_index(args[1], number, mask)
        return func, (args[0], index, *args[2:]), {**kwargs}
    if func in _REPEAT and args:
        return _settled_repeat(func, args, kwargs, mask)
    if func in _MASKED_SELECT and not kwargs:
        return _settled_select(func, args, mask)
    if func in _SIZES:
        first = 1 if args and isinstance(args[0], Tensor) and args[0].ndim else 0
        numbers = [_numbers(arg, number) for arg in args[first:]]
        return func, (*args[:first], *numbers), {**kwargs}
    return func, (*args,), {**kwargs}


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and slices."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for item in values:
            yield from tensors_in(item)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, slice):
        yield from tensors_in((values.start, values.stop, values.step))


def _index(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype == torch.bool and item.ndim > 0


def _is_integer(item: Any) -> bool:
    return (
        isinstance(item, Tensor)
        and not item.ndim
        and item.dtype != torch.bool
        and not (item.is_floating_point() or item.is_complex())
    )


def _settled_index(index: Any, number: Settle, mask: Settle) -> Any:
    """A mask becomes the places that it keeps."""
    items: list[Any] = []
    for item in _index(index):
        places = mask(item) if _is_mask(item) else None
        if places is not None:
            with untraced():
                items.extend(places.nonzero(as_tuple=True))
        elif isinstance(item, slice):
            parts = (item.start, item.stop, item.step)
            items.append(slice(*(_numbers(part, number) for part in parts)))
        else:
            items.append(_numbers(item, number) if _is_integer(item) else item)
    return tuple(items) if isinstance(index, tuple) or len(items) > 1 else items[0]


def _numbers(value: Any, number: Settle) -> Any:
    """Tensors of one integer as numbers, where they are known."""
    if type(value) in (tuple, list):
        return type(value)(_numbers(item, number) for item in value)
    known = number(value) if _is_integer(value) else None
    with untraced():
        return value if known is None else int(known)


def _repeats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("repeats", args[1] if len(args) > 1 else None)


def _settled_select(
    func: Callable[..., Any], args: Sequence[Any], mask: Settle
) -> Bound:
    source, kept = args
    places = mask(kept)
    if places is None:
        return func, (*args,), {}
    shape = torch.broadcast_shapes(source.shape, places.shape)  # type: ignore[no-untyped-call]
    with untraced():
        kept = places.expand(shape).nonzero(as_tuple=True)
    return (lambda source, kept: source.expand(shape)[kept]), (source, kept), {}


def _settled_repeat(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    mask: Settle,
) -> Bound:
    source, repeats = args[0], _repeats(args, kwargs)
    counts = mask(repeats) if isinstance(repeats, Tensor) else None
    if counts is None:
        return func, (*args,), {**kwargs}
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    size = source.numel() if dim is None else source.shape[dim]
    with untraced():
        counts = counts.expand(size)
        places = torch.arange(size, device=counts.device).repeat_interleave(counts)
    return (
        (_select_flat if dim is None else torch.index_select),
        (
            *((source,) if dim is None else (source, dim)),
            places,
        ),
        {},
    )


def _select_flat(source: Tensor, places: Tensor) -> Tensor:
    return source.flatten().index_select(0, places)
