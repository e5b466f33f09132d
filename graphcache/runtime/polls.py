"""Polls: whether anything that a walk has come across was changed since.

A poll is as cheap as the interpreter allows, because all of them run at every call:
dicts have a version that every write raises, lists and sets are compared with what they
held, and the types of weights by one native call. Of each module's own weights only the
first is looked at in every call: what changes the type of a weight in place, as
``module.to()`` does, changes that of its neighbours. All are looked at where a
generation begins.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._C._dynamo.guards import TensorGuards, dict_version
from torch.utils.hooks import RemovableHandle

from graphcache.capture.eager import version


class Polls:
    """What to look at, and what it was like when the polls were sealed.

    Whatever is polled is kept alive, so that no other object takes its identity.
    """

    def __init__(self) -> None:
        self._dicts: list[dict[Any, Any]] = []
        self._empty: list[dict[Any, Any]] = []
        self._objects: list[Any] = []
        self._calls: list[Callable[[], object]] = []
        self._answers: list[object] = []
        self._hooks: list[dict[int, Any]] = []
        self._lists: list[list[Any]] = []
        self._sets: list[set[Any]] = []
        self._slots: list[tuple[Any, str]] = []
        self._tensors: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._samples: list[Tensor] = []
        self._versions: list[int] = []
        self._kinds: list[type] = []
        self._handles = 0
        self._counts: list[int] = []
        self._items: list[tuple[Any, ...]] = []
        self._members: list[frozenset[Any]] = []
        self._values: list[Any] = []
        self._writes: list[int] = []
        self._types: Any = None
        self._sampled: Any = None

    def add_dict(self, value: dict[Any, Any]) -> None:
        """Poll the keys of a dict, and which objects its values are."""
        (self._dicts if value else self._empty).append(value)

    def add_object(self, value: Any) -> None:
        """Poll the class of an object, and its attributes if it has a dict of them."""
        self._objects.append(value)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self.add_dict(attributes)

    def add_call(self, function: Callable[[], object]) -> None:
        """Poll what a function answers; it has to be cheap."""
        self._calls.append(function)

    def add_hooks(self, value: dict[int, Any]) -> None:
        """Poll whether a hook of torch's is registered in this table."""
        self._hooks.append(value)

    def add_list(self, value: list[Any]) -> None:
        """Poll which objects a list holds."""
        self._lists.append(value)

    def add_set(self, value: set[Any]) -> None:
        """Poll which elements a set holds."""
        self._sets.append(value)

    def add_slot(self, owner: Any, name: str) -> None:
        """Poll which object an attribute is that is not in the owner's dict."""
        self._slots.append((owner, name))

    def add_tensor(self, value: Tensor) -> None:
        """Poll how often a tensor has been written to."""
        self._tensors.append(value)

    def add_weights(self, values: Sequence[Tensor]) -> None:
        """Poll the types of weights: class, shape, strides, dtype and device.

        Args:
            values: The weights of one module; the first stands for them at every call.
        """
        self._weights.extend(values)
        self._samples.extend(values[:1])

    def seal(self) -> Polls:
        """Take what everything is like now for what it is to stay like."""
        self._versions = list(map(dict_version, self._dicts))
        self._kinds = list(map(type, self._objects))
        self._answers = [function() for function in self._calls]
        self._handles = RemovableHandle.next_id
        self._counts = list(map(len, self._hooks))
        self._items = list(map(tuple, self._lists))
        self._members = list(map(frozenset, self._sets))
        self._values = [getattr(*slot, None) for slot in self._slots]
        self._writes = list(map(version, self._tensors))
        self._types = _types_of(self._weights)
        self._sampled = _types_of(self._samples)
        return self

    def changed(self) -> bool:
        """Whether anything is another object, or of another type, than when sealed.

        A change that was undone counts as one.
        """
        return (
            list(map(dict_version, self._dicts)) != self._versions
            or any(map(len, self._empty))
            or list(map(type, self._objects)) != self._kinds
            or self._is_hooked()
            or [function() for function in self._calls] != self._answers
            or (self._sampled is not None and not self._sampled.check(*self._samples))
            or not all(map(_holds, self._lists, self._items))
            or self._sets != self._members
            or not all(map(_is_in, self._slots, self._values))
            or list(map(version, self._tensors)) != self._writes
        )

    def retyped(self) -> bool:
        """Whether any weight at all is of another type than when sealed."""
        return self._types is not None and not self._types.check(*self._weights)

    def _is_hooked(self) -> bool:
        # Every registration anywhere takes a number: most calls look at it alone.
        if RemovableHandle.next_id == self._handles:
            return False
        hooked = list(map(len, self._hooks)) != self._counts
        if not hooked:
            self._handles = RemovableHandle.next_id
        return hooked


def _holds(values: list[Any], items: tuple[Any, ...]) -> bool:
    return len(values) == len(items) and all(map(operator.is_, values, items))


def _is_in(slot: tuple[Any, str], value: Any) -> bool:
    return getattr(*slot, None) is value


def _types_of(weights: Sequence[Tensor]) -> Any:
    """Guards of Dynamo's on the types of tensors; None if there are no tensors."""
    if not weights:
        return None
    return TensorGuards(*weights, dynamic_dims_sizes=None, dynamic_dims_strides=None)
