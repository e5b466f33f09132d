"""Writes: what a forward does to the containers and objects that it is given.

A number or a name that it writes follows from the call's key, so that every call of
that key writes the same, and the runtime does so too. A tensor that it puts into one is
one more result of the program, and the runtime puts it where the forward did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from graphcache.errors import CaptureError
from graphcache.signature import PLAIN, children, rebuilt


@dataclass(frozen=True)
class Result:
    """Stands for a tensor that the program gives after the module's own results.

    Attributes:
        index: Which of them.
    """

    index: int


@dataclass(frozen=True)
class Given:
    """Stands for a tensor of the call.

    Attributes:
        index: Which of its tensor leaves.
    """

    index: int


@dataclass(frozen=True)
class Write:
    """One entry of a container that a call changes.

    Attributes:
        keys: Where it is: an argument, then indices, keys or names of attributes.
        value: What it is afterwards, with a `Result` or a `Given` in the place of each
            tensor; `GONE` if it is not there any more.
    """

    keys: tuple[Any, ...]
    value: Any

    @property
    def path(self) -> str:
        """Where it is, as text."""
        return ".".join(map(str, self.keys))

    @property
    def is_plain(self) -> bool:
        """Whether no tensor and no container is put there."""
        return isinstance(self.value, (*PLAIN, _Gone))

    def apply(
        self,
        values: Mapping[str, Any],
        tensors: Sequence[Tensor] = (),
        results: Sequence[Tensor] = (),
    ) -> None:
        """Repeat it on the arguments of another call.

        Args:
            values: The arguments by name.
            tensors: Their tensor leaves.
            results: What the program gave after the module's own results.
        """

        def tensor(leaf: Result | Given) -> Tensor:
            given = tensors if isinstance(leaf, Given) else results
            return given[leaf.index]

        owner: Any = values
        for key in self.keys[:-1]:
            owner = dict(children(owner))[key]
        entries = owner if isinstance(owner, (dict, list)) else vars(owner)
        key = self.keys[-1]
        if self.value is GONE:
            del entries[key]
            return
        value = rebuilt(self.value, tensor, (Result, Given))
        if isinstance(entries, list) and key == len(entries):
            entries.append(value)
        else:
            entries[key] = value


class _Gone:
    """Stands for an entry that is not there any more."""


GONE = _Gone()


def as_results(
    writes: Sequence[Write], given: Sequence[Tensor]
) -> tuple[tuple[Write, ...], list[Tensor]]:
    """The writes without their tensors, and the tensors that a program has to give.

    Args:
        writes: What a call wrote.
        given: The tensor leaves of the call.

    Raises:
        CaptureError: If something is put there that is no data.
    """
    known = {id(tensor): index for index, tensor in enumerate(given)}
    found: list[Tensor] = []

    def place(tensor: Tensor) -> Result | Given:
        if id(tensor) in known:
            return Given(known[id(tensor)])
        found.append(tensor)
        return Result(len(found) - 1)

    refused = [write.path for write in writes if not _is_data(write.value)]
    if refused:
        raise CaptureError(
            f"the forward writes to {', '.join(sorted(refused))} what is neither a "
            "tensor, a number, a string nor a container or plain object of those, and "
            "a program cannot give it"
        )
    return (
        tuple(
            w if w.is_plain else replace(w, value=rebuilt(w.value, place))
            for w in writes
        ),
        found,
    )


def _is_data(value: Any) -> bool:
    if isinstance(value, (Tensor, *PLAIN, _Gone)):
        return True
    parts = [item for _, item in children(value)]
    known = isinstance(value, (tuple, list, dict)) or hasattr(value, "__dict__")
    opaque = callable(value) or isinstance(value, (type, set))
    return known and not opaque and all(map(_is_data, parts))


def writes_between(before: Any, after: Any) -> tuple[Write, ...]:
    """What was written to a container, told by a copy of it from before.

    Both hold the same tensors.
    """
    return tuple(_writes((), before, after))


def _writes(keys: tuple[Any, ...], before: Any, after: Any) -> Iterator[Write]:
    known, found = dict(children(before)), dict(children(after))
    for key, value in found.items():
        place = (*keys, key)
        if key not in known or _is_replaced(known[key], value):
            yield Write(place, value)
        else:
            yield from _writes(place, known[key], value)
    for key in reversed([key for key in known if key not in found]):
        yield Write((*keys, key), GONE)


def _is_replaced(before: Any, after: Any) -> bool:
    """Whether an entry is another one; a tuple is, whose entries are."""
    if not _is_same(before, after):
        return True
    if not isinstance(after, tuple):
        return False
    alike = len(before) == len(after)
    return not alike or any(map(_is_replaced, before, after))


def _is_same(before: Any, after: Any) -> bool:
    """Whether a leaf is the same; of containers, whether they are of one type."""
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return before is after
    if type(before) is not type(after):
        return False
    return not isinstance(after, PLAIN) or bool(before == after)
