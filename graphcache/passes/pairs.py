"""Pairs: complex arithmetic as two real tensors, a rule per operator.

A rule is a function of an operator's arguments with a `Pair` in the place of every
complex tensor. It is traced where the operator stood, so it is written as what it
means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_aten = torch.ops.aten


class Pair(NamedTuple):
    """A complex tensor: its real and its imaginary part, of one shape and dtype."""

    real: Any
    imag: Any


Rule = Callable[..., Any]
"""Takes an operator's arguments, gives its results, a `Pair` for what is complex."""


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the parts of a complex dtype; any other dtype as it is."""
    return dtype.to_real() if dtype.is_complex else dtype


def as_pair(value: Any) -> Pair:
    """A pair of whatever can stand in complex arithmetic: tensors and numbers."""
    if isinstance(value, Pair):
        return value
    if isinstance(value, Tensor):
        return Pair(value, torch.zeros_like(value))
    return Pair(value.real, value.imag)


def split(value: Tensor) -> Pair:
    """The parts of a complex tensor."""
    real = torch.view_as_real(value)
    return Pair(real.select(-1, 0), real.select(-1, 1))


def interleave(value: Pair) -> Tensor:
    """``[..., 2]``, as `torch.view_as_real` gives it."""
    return torch.stack([value.real, value.imag], -1)


def join(value: Pair) -> Tensor:
    """The complex tensor of a pair."""
    return torch.view_as_complex(interleave(value))


def _each(op: Callable[..., Any]) -> Rule:
    """Of an operator that treats both parts alike: moves, copies, sums."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(
            _paired_in_lists, (args, kwargs), is_leaf=_is_list
        )
        parts = [op(*pick(args, side), **pick(kwargs, side)) for side in Pair._fields]
        if isinstance(parts[0], Tensor):
            return Pair(*parts)
        return [Pair(*pair) for pair in zip(*parts, strict=True)]

    def pick(tree: Any, side: str) -> Any:
        return pytree.tree_map_only(
            Pair, lambda pair: getattr(pair, side), tree, is_leaf=_is_pair
        )

    return rule


def _is_pair(value: Any) -> bool:
    return isinstance(value, Pair)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, Pair))


def _paired_in_lists(value: Any) -> Any:
    """Lists of tensors, one of which is complex, are complex throughout."""
    if isinstance(value, list) and any(map(_is_pair, value)):
        return [as_pair(item) for item in value]
    return value


def _add(left: Any, right: Any, *, alpha: Any = 1) -> Pair:
    left, right = as_pair(left), as_pair(right)
    return Pair(left.real + right.real * alpha, left.imag + right.imag * alpha)


def _subtract(left: Any, right: Any, *, alpha: Any = 1) -> Pair:
    left, right = as_pair(left), as_pair(right)
    return Pair(left.real - right.real * alpha, left.imag - right.imag * alpha)


def _multiply(left: Any, right: Any) -> Pair:
    if not isinstance(left, Pair):
        left, right = right, left
    if not isinstance(right, (Pair, complex)):
        return Pair(left.real * right, left.imag * right)
    right = as_pair(right)
    return Pair(
        left.real * right.real - left.imag * right.imag,
        left.real * right.imag + left.imag * right.real,
    )


def _divide(left: Any, right: Any) -> Pair:
    if not isinstance(right, (Pair, complex)):
        return Pair(left.real / right, left.imag / right)
    right = as_pair(right)
    size = right.real * right.real + right.imag * right.imag
    return _multiply(left, Pair(right.real / size, -right.imag / size))


def _conjugate(value: Pair) -> Pair:
    return Pair(value.real, -value.imag)


def _magnitude(value: Pair) -> Tensor:
    size: Tensor = value.real * value.real + value.imag * value.imag
    return size.sqrt()


def _polar(size: Tensor, angle: Tensor) -> Pair:
    return Pair(size * angle.cos(), size * angle.sin())


def _choose(condition: Tensor, left: Any, right: Any) -> Pair:
    left, right = as_pair(left), as_pair(right)
    return Pair(
        torch.where(condition, left.real, right.real),
        torch.where(condition, left.imag, right.imag),
    )


def _convert(value: Any, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """`_to_copy`, from or to a complex dtype."""
    if dtype is not None and not dtype.is_complex:
        return _aten._to_copy.default(value.real, dtype=dtype, **kwargs)
    wanted = None if dtype is None else real_dtype(dtype)
    parts = as_pair(value)
    return Pair(*(_aten._to_copy.default(p, dtype=wanted, **kwargs) for p in parts))


def _dft(
    count: int, frequencies: int, norm: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a discrete Fourier transform, ``[count, frequencies]``.

    The angles are reduced as integers, so that they are exact, and the tables are
    worked out in f64: they are off by the rounding to their dtype alone.

    Args:
        count: How many values are transformed.
        frequencies: How many of the frequencies, from zero.
        norm: ATen's number for what to scale by: 0 for nothing, 1 for the root of the
            count, 2 for the count.
        like: Says device and dtype.
    """
    place = torch.arange(count, device=like.device)
    turns = place[:, None] * place[None, :frequencies] % count
    angle = turns.double() * (2.0 * math.pi / count)
    cos, sin = angle.cos(), angle.sin()
    if norm:
        scale = count**-0.5 if norm == 1 else 1.0 / count
        cos, sin = cos * scale, sin * scale
    return cos.to(like.dtype), sin.to(like.dtype)


def _along(value: Tensor, table: Tensor, dim: int) -> Tensor:
    """The product with a table along one dimension."""
    if value.ndim == 1:
        return (value[None] @ table)[0]
    if dim in (-1, value.ndim - 1):
        return value @ table
    return (value.movedim(dim, -1) @ table).movedim(-1, dim)


def _transform(value: Pair, dims: Sequence[int], norm: int, forward: bool) -> Pair:
    """`_fft_c2c`: one product after another along the dimensions."""
    for dim in dims:
        count = value.real.shape[dim]
        cos, sin = _dft(count, count, norm, value.real)
        sin = sin if forward else -sin
        value = Pair(
            _along(value.real, cos, dim) + _along(value.imag, sin, dim),
            _along(value.imag, cos, dim) - _along(value.real, sin, dim),
        )
    return value


def _transform_real(
    value: Tensor, dims: Sequence[int], norm: int, onesided: bool
) -> Pair:
    """`_fft_r2c`: the last dimension first, where the input is real."""
    *others, last = dims
    count = value.shape[last]
    kept = count // 2 + 1 if onesided else count
    cos, sin = _dft(count, kept, norm, value)
    first = Pair(_along(value, cos, last), -_along(value, sin, last))
    return _transform(first, others, norm, forward=True)


def _transform_to_real(
    value: Pair, dims: Sequence[int], norm: int, last_dim_size: int
) -> Tensor:
    """`_fft_c2r`: every frequency but zero and the highest stands for two."""
    *others, last = dims
    value = _transform(value, others, norm, forward=False)
    kept = last_dim_size // 2 + 1
    cos, sin = _dft(last_dim_size, kept, norm, value.real)
    index = torch.arange(kept, device=cos.device)
    single = (index == 0) | (index * 2 == last_dim_size)
    weight = 2.0 - single.to(cos.dtype)
    return _along(value.real, (cos * weight).t(), last) - _along(
        value.imag, (sin * weight).t(), last
    )


_EACH = (
    _aten._unsafe_view, _aten.alias, _aten.cat, _aten.chunk, _aten.clone, _aten.copy,
    _aten.detach, _aten.expand, _aten.flatten, _aten.flip, _aten.index,
    _aten.index_select, _aten.mean, _aten.movedim, _aten.neg, _aten.new_empty_strided,
    _aten.permute, _aten.repeat, _aten.reshape, _aten.roll, _aten.select, _aten.slice,
    _aten.split, _aten.split_with_sizes, _aten.squeeze, _aten.stack, _aten.sum, _aten.t,
    _aten.transpose, _aten.unbind, _aten.unflatten, _aten.unsqueeze, _aten.view,
    _aten.zeros_like,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    **{op: _each(op) for op in _EACH},
    _aten.add: _add,
    _aten.sub: _subtract,
    _aten.mul: _multiply,
    _aten.div: _divide,
    _aten.abs: _magnitude,
    _aten._conj: _conjugate,
    _aten._conj_physical: _conjugate,
    _aten.conj_physical: _conjugate,
    _aten.resolve_conj: lambda value: value,
    _aten.real: lambda value: value.real,
    _aten.imag: lambda value: value.imag,
    _aten.complex: Pair,
    _aten.polar: _polar,
    _aten.view_as_real: interleave,
    _aten.view_as_complex: lambda x: Pair(x.select(-1, 0), x.select(-1, 1)),
    _aten.where: _choose,
    _aten._to_copy: _convert,
    _aten._fft_c2c: _transform,
    _aten._fft_r2c: _transform_real,
    _aten._fft_c2r: _transform_to_real,
}
"""By operator, whatever the overload."""
