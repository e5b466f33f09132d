"""Weights: read from the module at every call, never copied."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graphcache.program import Input, InputKind
from graphcache.quantised import Take, scheme_of


@dataclass(frozen=True)
class Weights:
    """Where a program's weights live in the module, to be read at every call.

    Reading them anew costs tens of nanoseconds each and means that a weight that was
    written, moved or replaced is seen.

    Attributes:
        owners: The parameters or buffers of the module that holds each.
        names: Their names there.
        inner: Of those that are tensors within a quantised weight, which they are and
            how they are read from it.
    """

    owners: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    inner: tuple[tuple[int, Take], ...]

    @staticmethod
    def of(module: nn.Module, inputs: Sequence[Input]) -> Weights:
        """The weights that the inputs name, in their order.

        Raises:
            CaptureError: If one is in a quantised weight of a kind that is not known.
        """
        targets = [e.target for e in inputs if e.kind is InputKind.WEIGHT]
        places = [place_of(module, target) for target in targets]
        inner = []
        for index, place in enumerate(places):
            if place.within:
                weight = place.owner[place.name]
                scheme = scheme_of(weight, targets[index])
                inner.append((index, scheme.takes(weight, place.part)[place.within]))
        owners = tuple(place.owner for place in places)
        return Weights(owners, tuple(place.name for place in places), tuple(inner))

    def read(self) -> list[Tensor]:
        """The weights as they are now."""
        return self.taken(list(map(operator.getitem, self.owners, self.names)))

    def taken(self, weights: list[Any]) -> list[Tensor]:
        """What is within quantised weights, in their places."""
        for index, take in self.inner:
            weights[index] = take(weights[index])
        return weights


@dataclass(frozen=True)
class Place:
    """Where a weight is.

    Attributes:
        part: The module that holds it.
        owner: Its parameters or buffers.
        name: The weight's name there.
        within: What of the weight is meant; empty for all of it.
    """

    part: nn.Module
    owner: dict[str, Any]
    name: str
    within: str


def place_of(module: nn.Module, target: str) -> Place:
    """Find what a target names: ``blocks.0.to_q.weight``, or a tensor within it.

    Args:
        module: The module.
        target: The path of a weight, then, where it is quantised, the name of one of
            the tensors that it is made of.
    """
    part, names = module, target.split(".")
    while len(names) > 1 and names[0] in part._modules:
        part = part.get_submodule(names.pop(0))
    name, within = names[0], ".".join(names[1:])
    owner = part._parameters if name in part._parameters else part._buffers
    return Place(part, owner, name, within)
