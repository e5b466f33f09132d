"""The call signature: arguments to flat tensors and back, fast.

A call is described by a `CallKey`: shapes, dtypes, devices and strides of its tensors
and the values of everything else. Two calls with one key run one capture.
"""

from __future__ import annotations

import copy
import enum
import inspect
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.errors import CaptureError

CallKey = tuple[Hashable, ...]
_MISSING = inspect.Parameter.empty
_is_neg, _is_conj = Tensor.is_neg, Tensor.is_conj
_RETURN_DICT = "return_dict"
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, enum.Enum)
"""Values that are part of a call's key as they are."""


@dataclass(frozen=True)
class Call:
    """One call of the module, normalised.

    Attributes:
        values: Every argument by parameter name, in signature order, defaults filled
            in, without ``return_dict``.
        tensors: The tensor leaves, in order.
        paths: Where each tensor leaf sits: ``hidden_states``, ``image_rotary_emb.0``.
        key: What a capture is specialised on.
        return_dict: What the caller asked for; None where the module has no such
            parameter.
    """

    values: dict[str, Any]
    tensors: list[Tensor]
    paths: list[str]
    key: CallKey
    return_dict: bool | None


class CallSignature:
    """Binds calls to the parameters of `forward`.

    Args:
        forward: The module's own forward.

    Raises:
        CaptureError: If `forward` takes ``*args``, which have no names to bind to.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.signature = inspect.signature(forward)
        self.defaults: dict[str, Any] = {}
        self.open = False
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                raise CaptureError(
                    f"forward{self.signature} takes *{name}: positional arguments "
                    "without names cannot be bound. Wrap the module in one whose "
                    "forward names them."
                )
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                self.open = True
            else:
                self.defaults[name] = parameter.default
        self.names = tuple(self.defaults)
        self.has_return_dict = _RETURN_DICT in self.defaults

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, resolve: bool = True
    ) -> Call:
        """Normalise one call.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            resolve: Whether to write out negations and conjugations that torch only
                notes on a tensor, which compiled code does not look at.

        Raises:
            TypeError: As Python would, for missing or unknown arguments.
            CaptureError: For an argument that is no tensor, number, string or a
                container or plain object of those.
        """
        values = self._values(args, kwargs)
        return_dict = None
        if self.has_return_dict:
            return_dict = bool(values.pop(_RETURN_DICT))
        return _call(values, return_dict, resolve)

    def _values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        values = {
            **self.defaults,
            **dict(zip(self.names, args, strict=False)),
            **kwargs,
        }
        unknown = len(values) != len(self.names) and not self.open
        clash = len(args) > len(self.names) or not kwargs.keys().isdisjoint(
            self.names[: len(args)]
        )
        if unknown or clash or any(value is _MISSING for value in values.values()):
            # Python's own message for a wrong call.
            self.signature.bind(*args, **kwargs)
        return values


def _call(
    values: dict[str, Any], return_dict: bool | None, resolve: bool = True
) -> Call:
    tensors: list[Tensor] = []
    paths: list[str] = []
    key: list[Hashable] = []
    for name, value in values.items():
        _flatten(name, value, tensors, paths, key)
    if resolve and (any(map(_is_neg, tensors)) or any(map(_is_conj, tensors))):
        tensors = list(map(resolved, tensors))
    return Call(values, tensors, paths, tuple(key), return_dict)


def is_lazy(tensor: Tensor) -> bool:
    """Whether a negation or a conjugation is noted on a tensor and not carried out."""
    return tensor.is_neg() or tensor.is_conj()


def resolved(tensor: Tensor) -> Tensor:
    """The tensor with what is noted on it carried out; itself if nothing is."""
    return tensor.resolve_conj().resolve_neg() if is_lazy(tensor) else tensor


def halved(call: Call, paths: Collection[str]) -> Call:
    """The call with the second half of the batch alone.

    Args:
        call: A call.
        paths: Which of its tensor arguments hold both halves.
    """
    values = {
        name: value.chunk(2)[1].contiguous() if name in paths else value
        for name, value in call.values.items()
    }
    return _call(values, call.return_dict)


def with_tensors(call: Call, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """The call's values with other tensors in the places of its own.

    Containers and objects are new ones, so that nothing that is done to them is seen
    by the caller.

    Args:
        call: A call.
        tensors: One for each of its tensor leaves, in order.
    """
    leaves = iter(tensors)
    return {n: rebuilt(v, lambda _: next(leaves)) for n, v in call.values.items()}


def children(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container or object holds, by index, key or name; nothing for a leaf."""
    if isinstance(value, (Tensor, *PLAIN)):
        return
    if isinstance(value, (tuple, list)):
        yield from enumerate(value)
    elif isinstance(value, dict):
        yield from value.items()
    elif _is_object(value):
        yield from vars(value).items()


def _is_object(value: Any) -> bool:
    """Whether a value is plain data in attributes, such as a cache of keys."""
    opaque = isinstance(value, (type, ModuleType, nn.Module)) or callable(value)
    return hasattr(value, "__dict__") and not opaque


def rebuilt(
    value: Any, leaf: Callable[[Any], Any], kinds: tuple[type, ...] = (Tensor,)
) -> Any:
    """A copy with other leaves: its containers and objects are new ones.

    Args:
        value: A leaf, a plain value, or a container or object of those.
        leaf: What stands in for a leaf.
        kinds: The types of leaves.
    """
    if isinstance(value, kinds):
        return leaf(value)
    if isinstance(value, PLAIN):
        return value
    items = [rebuilt(item, leaf, kinds) for _, item in children(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*items)
    if isinstance(value, (tuple, list)):
        return type(value)(items)
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update(zip(value, items, strict=True))
        return copied
    kind = type(value)
    # A class of C has a `__new__` of its own.
    made: Any = SimpleNamespace() if kind is SimpleNamespace else object.__new__(kind)
    made.__dict__.update(zip(vars(value), items, strict=True))
    return made


def _flatten(
    path: str,
    value: Any,
    tensors: list[Tensor],
    paths: list[str],
    key: list[Hashable],
) -> None:
    if isinstance(value, Tensor):
        tensors.append(value)
        paths.append(path)
        key.append((value.shape, value.dtype, value.device, value.stride()))
        return
    if isinstance(value, PLAIN):
        key.append((type(value), value))
        return
    if isinstance(value, (tuple, list)):
        key.append((type(value), len(value)))
    elif isinstance(value, dict):
        key.append((type(value), tuple(value)))
    elif _is_object(value):
        key.append((type(value), tuple(vars(value))))
    else:
        raise CaptureError(
            f"argument {path} is a {type(value).__name__}: only tensors, numbers, "
            "strings, None and tuples, lists, dicts and plain objects of those can be "
            "captured"
        )
    for name, item in children(value):
        _flatten(f"{path}.{name}", item, tensors, paths, key)
