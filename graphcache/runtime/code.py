"""Code: which functions a forward would run, and the globals that they name.

People replace a class's forward, a function of a model's file or the attention backend
of a library, and a program that was traced before does not know. `code_of` follows the
names in the code of the forwards, from class to method and from function to global, and
writes down which object each of them is.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from graphcache.runtime.polls import Polls

_FOREIGN = frozenset(
    (
        *sys.stdlib_module_names,
        *("torch", "numpy", "accelerate", "transformers", "huggingface_hub"),
        *("safetensors", "graphcache"),
    )
)
_ENTRIES = ("forward", "__call__")
_PLAIN = (bool, int, float, str, type(None))


class Code(NamedTuple):
    """What a forward would run.

    Attributes:
        structure: By owner and name, which object a name stands for.
        kept: The objects that the structure names by identity.
    """

    structure: dict[tuple[str, str], Any]
    kept: list[Any]


def library_of(kind: type) -> str:
    """The name of the package that a class comes from."""
    return str(kind.__module__).partition(".")[0]


def _is_foreign(kind: type) -> bool:
    """Whether a class is of a library that nobody patches between two calls."""
    return library_of(kind) in _FOREIGN


def code_of(classes: Iterable[type], polls: Polls) -> Code:
    """The code that the forwards of some classes reach, by the names in it.

    Args:
        classes: Of modules and of objects that are called.
        polls: The dicts of classes and of files are added to it.
    """
    walk = _CodeWalk(polls)
    for kind in classes:
        walk.add_class(kind, _ENTRIES)
    walk.run()
    return Code(walk.structure, walk.kept)


class _CodeWalk:
    """Follows names until there are no new ones."""

    def __init__(self, polls: Polls) -> None:
        self.structure: dict[tuple[str, str], Any] = {}
        self.kept: list[Any] = []
        self._polls = polls
        self._classes: dict[type, set[str]] = {}
        self._names: set[str] = set()
        self._dicts: set[int] = set()
        self._files: dict[int, set[str]] = {}
        self._functions: set[types.CodeType] = set()
        self._waiting: list[types.FunctionType] = []

    def add_class(self, kind: type, names: Iterable[str] = ()) -> None:
        """Follow these names of a class, and all that are met anywhere."""
        if kind not in self._classes:
            self._classes[kind] = set()
            for base in _own_bases(kind):
                self._poll(_dict_of(base))
        self._resolve(kind, set(names) | self._names)

    def run(self) -> None:
        """Follow the functions that are waiting, and those that they lead to."""
        while self._waiting:
            function = self._waiting.pop()
            code, names = function.__code__, set(_names_in(function.__code__))
            if code in self._functions:
                continue
            self._functions.add(code)
            self._globals(function, names)
            new = names - self._names
            self._names |= new
            for kind in [*self._classes]:
                self._resolve(kind, new)

    def _resolve(self, kind: type, names: set[str]) -> None:
        """Look up names that were met in the class and in its bases."""
        names = names - self._classes[kind]
        self._classes[kind] |= names
        for base in _own_bases(kind):
            for name in names & vars(base).keys():
                self._note(f"{base.__module__}.{base.__qualname__}", name, base)

    def _note(self, owner: str, name: str, base: type) -> None:
        value = vars(base)[name]
        self._write(owner, name, value)
        if isinstance(value, dict):
            # A table of a class can be reached from its objects.
            self._polls.add_dict(value)
            self._write_items(owner, name, value.items())
        elif isinstance(value, list):
            self._polls.add_list(value)
            self._write_items(owner, name, enumerate(value))
        for function in _functions_in(value):
            self._add(function)

    def _globals(self, function: types.FunctionType, names: set[str]) -> None:
        scope = function.__globals__
        owner = str(scope.get("__name__"))
        if owner.partition(".")[0] in _FOREIGN:
            return
        self._poll(scope)
        for name in names & scope.keys():
            value = scope[name]
            self._write(owner, name, value)
            for found in _functions_in(value):
                self._add(found)
            if isinstance(value, type) and not _is_foreign(value):
                self.add_class(value)
            if isinstance(value, types.ModuleType):
                self._members(value, names)

    def _members(self, module: types.ModuleType, names: set[str]) -> None:
        """Follow the names that a function may ask a file for, as ``file.name``."""
        if module.__name__.partition(".")[0] in sys.stdlib_module_names:
            return
        scope = vars(module)
        seen = self._files.setdefault(id(scope), set())
        new, owner = (names & scope.keys()) - seen, module.__name__
        seen |= new
        if new:
            self._poll(scope)
        for name in new:
            value = scope[name]
            self._write(owner, name, value)
            for found in _functions_in(value):
                self._add(found)
            if isinstance(value, types.ModuleType):
                self._members(value, names)

    def _add(self, function: types.FunctionType) -> None:
        if function.__module__ is None:
            return
        if function.__module__.partition(".")[0] not in _FOREIGN:
            self._waiting.append(function)

    def _write(self, owner: str, name: str, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.structure[owner, name] = type(value), value
        else:
            self.kept.append(value)
            self.structure[owner, name] = "is", id(value)

    def _write_items(
        self, owner: str, name: str, items: Iterable[tuple[Any, Any]]
    ) -> None:
        for key, value in items:
            self._write(f"{owner}.{name}", str(key), value)

    def _poll(self, entries: dict[Any, Any] | None) -> None:
        if entries is not None and id(entries) not in self._dicts:
            self._dicts.add(id(entries))
            self._polls.add_dict(entries)


def _own_bases(kind: type) -> tuple[type, ...]:
    return tuple(base for base in kind.__mro__ if not _is_foreign(base))


def _dict_of(kind: type) -> dict[Any, Any] | None:
    """The dict behind the read-only view of a class's attributes."""
    found = [item for item in gc.get_referents(vars(kind)) if isinstance(item, dict)]
    return found[0] if found else None


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _functions_in(value: Any) -> Iterator[types.FunctionType]:
    """The functions behind a method, a property or a decorator."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None and not isinstance(value, types.FunctionType):
        yield from _functions_in(wrapped)
    if not isinstance(value, types.FunctionType):
        return
    yield value
    for cell in value.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:
            # The cell is empty until its function has run.
            continue
        if isinstance(held, types.FunctionType):
            yield from _functions_in(held)
