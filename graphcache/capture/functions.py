"""Torch functions by what they ask of values, for `graphcache.capture.known`.

Some give the host a number. Some give a tensor whose shape depends on values. Some take
a number as a tensor. What else there is only computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import no_python_dispatcher
from torch.utils._python_dispatch import _disable_current_modes

Settle = Callable[[Tensor], Tensor | None]
"""The value of a tensor that is about to be compiled in; None if it is not known."""
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
DATA = Tensor.data.__get__  # type: ignore[attr-defined]
"""Gives a tensor whose writes are not counted with those of its origin."""
TEMPLATE = {
    **dict.fromkeys(_named("zeros_like", "ones_like", "full_like"), 0),
    **dict.fromkeys(_named("new_zeros", "new_ones", "new_full", "new_tensor"), 0),
    **dict.fromkeys(_named("to", "type_as", "expand_as", "view_as", "reshape_as"), 1),
}
"""By function, the place of an operand of which the type alone matters."""
_ITEMS = (Tensor.__getitem__, Tensor.__setitem__)
_CHOOSING = _named(
    *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select"),
    "bincount",
)
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


@contextmanager
def untraced() -> Iterator[None]:
    """Run what is inside on real tensors, in the midst of a trace."""
    with (
        torch._C.DisableTorchFunction(),
        _disable_current_modes(),
        no_python_dispatcher(),
    ):
        yield


def chooses_shape(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Whether the shape of what this gives depends on values."""
    if func in _CHOOSING:
        return True
    if func in _WHERE:
        return len(args) + len(kwargs) == 1
    if func in _REPEAT:
        return isinstance(_repeats(args, kwargs), Tensor)
    if func in _MAKES:
        # From a list of tensors: each is read. From one tensor: a copy.
        return any(isinstance(arg, (list, tuple)) for arg in args) and any(
            True for _ in tensors_in(args)
        )
    return func is Tensor.__getitem__ and any(map(_is_mask, _index(args[1])))


def settled(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    settle: Settle,
) -> Bound:
    """The same call with known masks, counts and sizes compiled in.

    A mask becomes the places that it keeps, a tensor of one integer a number. What is
    not known stays.
    """
    if func in _ITEMS:
        return func, (args[0], _settled_index(args[1], settle), *args[2:]), {**kwargs}
    if func in _REPEAT:
        return _settled_repeat(func, args, kwargs, settle)
    if func in _MASKED_SELECT and not kwargs:
        places = settle(args[1])
        if places is not None:
            shape = torch.broadcast_shapes(args[0].shape, places.shape)  # type: ignore[no-untyped-call]
            with untraced():
                kept = places.expand(shape).nonzero(as_tuple=True)
            return Tensor.__getitem__, (args[0].expand(shape), kept), {}
    if func in _SIZES:
        first = 1 if args and isinstance(args[0], Tensor) and args[0].ndim else 0
        numbers = [_numbers(arg, settle) for arg in args[first:]]
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


def _settled_index(index: Any, settle: Settle) -> Any:
    items: list[Any] = []
    for item in _index(index):
        places = settle(item) if _is_mask(item) else None
        if places is not None:
            with untraced():
                items.extend(places.nonzero(as_tuple=True))
        elif isinstance(item, slice):
            parts = (item.start, item.stop, item.step)
            items.append(slice(*(_numbers(part, settle) for part in parts)))
        else:
            items.append(_numbers(item, settle) if _is_integer(item) else item)
    return tuple(items) if isinstance(index, tuple) or len(items) > 1 else items[0]


def _numbers(value: Any, settle: Settle) -> Any:
    """Tensors of one integer as numbers, where they are known."""
    if type(value) in (tuple, list):
        return type(value)(_numbers(item, settle) for item in value)
    number = settle(value) if _is_integer(value) else None
    with untraced():
        return value if number is None else int(number)


def _repeats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("repeats", args[1] if len(args) > 1 else args[0])


def _settled_repeat(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    settle: Settle,
) -> Bound:
    repeats = _repeats(args, kwargs)
    counts = settle(repeats) if isinstance(repeats, Tensor) else None
    if counts is None:
        return func, (*args,), {**kwargs}
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    source = args[0].flatten() if dim is None else args[0]
    dim = dim or 0
    with untraced():
        counts = counts.expand(source.shape[dim])
        order = torch.arange(len(counts), device=counts.device)
        places = order.repeat_interleave(counts)
    return torch.index_select, (source, dim, places), {}
