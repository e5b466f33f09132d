"""State: what a module holds in Python, put back as it was by identity.

A trace runs the forward with tensors that hold nothing, and torch.export puts copies
in the place of a module's lists and dicts. What users hold of a module must stay the
module's own, and must hold what it held.
"""

from __future__ import annotations

import copy
import functools
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.signature import PLAIN, is_lazy, resolved

_FOREIGN = frozenset((*sys.stdlib_module_names, "torch", "numpy"))
_TABLES = re.compile(r"_(?:parameters|buffers|modules)\.")
_CONTAINERS = (dict, list, set, deque)


@dataclass(frozen=True)
class _Held:
    """A container, and what was in it.

    Attributes:
        path: Where it was found first.
        owner: The container: a dict, list, set or deque.
        items: Its entries; of a dict, its pairs.
    """

    path: str
    owner: Any
    items: tuple[Any, ...]

    @staticmethod
    def of(path: str, owner: Any) -> _Held:
        """What a container holds now."""
        return _Held(path, owner, tuple(_entries(owner)))

    def changed(self) -> str | None:
        """Where it holds something else than it did; None if it does not."""
        items = tuple(_entries(self.owner))
        if _alike(self.items, items):
            return None
        if isinstance(self.owner, dict):
            before = dict(self.items)
            for name, value in items:
                if name not in before or not _is_alike(before[name], value):
                    return f"{self.path}.{name}".lstrip(".")
        return self.path

    def put_back(self) -> None:
        """Make the container hold what it did, in the same order."""
        if _same(self.items, tuple(_entries(self.owner))):
            return
        self.owner.clear()
        if isinstance(self.owner, (list, deque)):
            self.owner.extend(self.items)
        else:
            self.owner.update(self.items)


def _entries(owner: Any) -> Iterator[Any]:
    return iter(owner.items() if isinstance(owner, dict) else owner)


def _same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    """Whether both hold the same objects."""
    return len(left) == len(right) and all(
        a is b or (type(a) is type(b) is tuple and len(a) == 2 and _same(a, b))
        for a, b in zip(left, right, strict=True)
    )


def _alike(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    """Whether both hold the same objects, or equal tensors and plain values."""
    return len(left) == len(right) and all(map(_is_alike, left, right))


def _is_alike(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if type(left) in (tuple, list):
        return _alike(tuple(left), tuple(right))
    if type(left) is dict:
        return _alike(tuple(left.items()), tuple(right.items()))
    if isinstance(left, Tensor):
        same_type = (left.shape, left.dtype) == (right.shape, right.dtype)
        return same_type and left.device == right.device and torch.equal(left, right)
    return isinstance(left, PLAIN) and bool(left == right)


class State:
    """Everything that a module holds in Python: of its parts and of plain objects.

    Other modules, which are no parts of it, and what libraries keep in their own
    objects are left out.

    Args:
        module: The module. Its attributes, containers and objects are looked through.
    """

    def __init__(self, module: nn.Module) -> None:
        self._held: list[_Held] = []
        self._seen: set[int] = set()
        for path, part in module.named_modules():
            self._look(path, part.__dict__)

    def changes(self) -> list[str]:
        """Where something else is held now than when this was made."""
        found = (held.changed() for held in self._held)
        names = {_TABLES.sub("", path) for path in found if path is not None}
        return sorted(names)

    def put_back(self) -> None:
        """Make every container and object hold what it did."""
        for held in self._held:
            held.put_back()

    def _look(self, path: str, root: Any) -> None:
        waiting = [(path, root)]
        while waiting:
            path, value = waiting.pop()
            owner = vars(value) if _is_object(value) else value
            if not isinstance(owner, (*_CONTAINERS, tuple)) or id(owner) in self._seen:
                continue
            self._seen.add(id(owner))
            # The container is kept alive, so that no other one takes its identity.
            held = _Held.of(path, owner)
            self._held.append(held)
            inside = owner if isinstance(owner, dict) else dict(enumerate(held.items))
            waiting.extend(
                (f"{path}.{name}".lstrip("."), item) for name, item in inside.items()
            )


def _is_object(value: Any) -> bool:
    """Whether a value is an object of a model's own that keeps its state in a dict."""
    if isinstance(value, SimpleNamespace):
        return True
    if isinstance(value, (type, ModuleType, nn.Module, Tensor, *_CONTAINERS, tuple)):
        return False
    foreign = type(value).__module__.partition(".")[0] in _FOREIGN
    return not foreign and isinstance(getattr(value, "__dict__", None), dict)


@contextmanager
def kept(module: nn.Module, *, always: bool) -> Iterator[None]:
    """Put the module's Python state back after what happens inside.

    Args:
        module: The module.
        always: Whether to do so where nothing fails as well.
    """
    state = State(module)
    try:
        yield
    except BaseException:
        state.put_back()
        raise
    if always:
        state.put_back()


def shell(module: nn.Module) -> nn.Module:
    """A module of the same parts, tensors and objects, to be traced in its place.

    torch swaps the parameters of what it traces, and its forward is replaced. Other
    threads may run the module meanwhile, so that is done to the shell: each part has
    tables of parameters, buffers and parts of its own, over the same tensors.

    Args:
        module: What to trace.
    """
    parts: dict[int, nn.Module] = {}
    for part in module.modules():
        # A scripted module keeps its state in C++, where it cannot be shared in part.
        scripted = isinstance(part, torch.jit.ScriptModule)
        parts[id(part)] = part if scripted else object.__new__(type(part))
    for part in module.modules():
        state = {k: _moved(v, parts) for k, v in part.__dict__.items()}
        for name in ("_parameters", "_buffers"):
            if name in state:
                state[name] = _resolved(state[name])
        if parts[id(part)] is not part:
            object.__setattr__(parts[id(part)], "__dict__", state)
    return parts[id(module)]


def _resolved(table: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """A copy with tensors as the program is given them."""
    copied = copy.copy(table)
    for name, value in table.items():
        if value is not None and is_lazy(value):
            made = resolved(value.detach())
            is_weight = isinstance(value, nn.Parameter)
            copied[name] = nn.Parameter(made, False) if is_weight else made
    return copied


def _moved(value: Any, parts: dict[int, nn.Module]) -> Any:
    """A value that holds the new parts in the places of the old ones."""
    if isinstance(value, nn.Module):
        return parts.get(id(value), value)
    if isinstance(value, MethodType):
        owner = _moved(value.__self__, parts)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if type(value) is functools.partial:
        args = tuple(_moved(arg, parts) for arg in value.args)
        return functools.partial(_moved(value.func, parts), *args, **value.keywords)
    if isinstance(value, dict) and _holds(value.values(), parts):
        copied = copy.copy(value)
        copied.update((key, _moved(item, parts)) for key, item in value.items())
        return copied
    if type(value) in (list, tuple) and _holds(value, parts):
        return type(value)(_moved(item, parts) for item in value)
    return value


def _holds(items: Any, parts: dict[int, nn.Module]) -> bool:
    return any(isinstance(item, nn.Module) and id(item) in parts for item in items)
