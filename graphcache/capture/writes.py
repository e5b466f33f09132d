"""Writes: what a forward does to the containers and objects that it is given.

A number or a name that it writes follows from the call's key, so that every call of
that key writes the same, and the runtime does so too. A tensor that it puts into one is
an output that the graph does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graphcache.signature import PLAIN, children


@dataclass(frozen=True)
class Write:
    """One entry of a container that a call changes.

    Attributes:
        keys: Where it is: an argument, then indices, keys or names of attributes.
        value: What it is afterwards; `GONE` if it is not there any more.
    """

    keys: tuple[Any, ...]
    value: Any

    @property
    def path(self) -> str:
        """Where it is, as text."""
        return ".".join(map(str, self.keys))

    @property
    def is_plain(self) -> bool:
        """Whether it can be repeated: no tensor and no new container is put there."""
        return isinstance(self.value, PLAIN) or self.value is GONE

    def apply(self, values: Mapping[str, Any]) -> None:
        """Repeat it on the arguments of another call."""
        owner: Any = values
        for key in self.keys[:-1]:
            owner = dict(children(owner))[key]
        entries = owner if isinstance(owner, (dict, list)) else vars(owner)
        if self.value is GONE:
            del entries[self.keys[-1]]
        elif isinstance(entries, list) and self.keys[-1] == len(entries):
            entries.append(self.value)
        else:
            entries[self.keys[-1]] = self.value


class _Gone:
    """Stands for an entry that is not there any more."""


GONE = _Gone()


def writes_between(before: Any, after: Any) -> tuple[Write, ...]:
    """What was written to a container, told by a copy of it from before.

    Both hold the same tensors.
    """
    return tuple(_writes((), before, after))


def _writes(keys: tuple[Any, ...], before: Any, after: Any) -> Iterator[Write]:
    known, found = dict(children(before)), dict(children(after))
    for key, value in found.items():
        place = (*keys, key)
        if key not in known or not _is_same(known[key], value):
            yield Write(place, value)
        else:
            yield from _writes(place, known[key], value)
    for key in reversed([key for key in known if key not in found]):
        yield Write((*keys, key), GONE)


def _is_same(before: Any, after: Any) -> bool:
    """Whether a leaf is the same; of containers, whether they are of one type."""
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return before is after
    if type(before) is not type(after):
        return False
    return not isinstance(after, PLAIN) or bool(before == after)
