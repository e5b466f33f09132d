"""Classes of drop-ins: a subclass of the module's class that passes for it.

diffusers compares types exactly where one pipeline is made from another, so that the
class of a drop-in is equal to the class it stands in for. accelerate puts its hooks on
the instance that it moves: a drop-in keeps those apart, because it shares its
``__dict__`` with the original, which must not be given them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from graphcache.runtime.instances import INSTANCE_HOOKS

_ORIGINAL = "_graphcache_original"


class DropInType(type):
    """The type of a drop-in's class, which is equal to the class it stands in for."""

    def __eq__(cls, other: object) -> bool:
        """Whether both stand for one class."""
        if not isinstance(other, type):
            return False
        return original_class(cls) is original_class(other)

    def __hash__(cls) -> int:
        """That of the class it stands in for."""
        return hash(original_class(cls))

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance of the original class: a drop-in is made by `compile`.

        ``type(module).from_config`` and the like come here.
        """
        return original_class(cls)(*args, **kwargs)


def original_class(kind: type) -> type:
    """The class that another stands in for: itself, unless it is a drop-in's."""
    found: type = vars(kind).get(_ORIGINAL, kind)
    return found


class HookSlot:
    """An attribute that accelerate sets on the instance it hooks.

    A class made by `make_kind` has one instance, so that the slot holds its value.

    Args:
        name: Of the attribute.
        default: The function that is a method without a hook; None if there is no
            such attribute then.
    """

    def __init__(self, name: str, default: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.default = default
        self.value: Any = None

    def __get__(self, instance: Any, owner: type) -> Any:
        """What was set, else the method.

        Raises:
            AttributeError: If there is neither.
        """
        if instance is None:
            return self if self.default is None else self.default
        if self.value is not None:
            return self.value
        if self.default is None:
            raise AttributeError(f"{owner.__name__} has no {self.name}")
        return MethodType(self.default, instance)

    def __set__(self, instance: Any, value: Any) -> None:
        """Hook the instance."""
        self.value = value

    def __delete__(self, instance: Any) -> None:
        """Unhook the instance.

        Raises:
            AttributeError: If nothing was set.
        """
        if self.value is None:
            raise AttributeError(self.name)
        self.value = None


def make_kind(
    original: type, base: type, forward: Callable[..., Any], members: dict[str, Any]
) -> type:
    """A class for one instance, which stands in for another class.

    Args:
        original: The class it stands in for.
        base: What goes before it: the class of what is added.
        forward: The forward, a function of the instance and its arguments.
        members: Other attributes of the class.
    """
    slots = {name: HookSlot(name) for name in INSTANCE_HOOKS}
    slots["forward"] = HookSlot("forward", forward)
    named = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        _ORIGINAL: original,
    }
    kind = _metaclass(type(original))
    return kind(original.__name__, (base, original), {**named, **slots, **members})


@functools.cache
def _metaclass(kind: type[type]) -> type[type]:
    if kind is type:
        return DropInType
    return type(f"DropIn{kind.__name__}", (DropInType, kind), {})
