"""Weights in a trace: a quantised weight is traced as the plain tensors it is made of.

`torch.export` makes an input of each parameter, and would do so of a tensor subclass as
a whole. So quantised weights are taken out of the module while it is exported, their
plain tensors are given as inputs, and the forward sees weights made of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn

from graphcache.errors import CaptureError
from graphcache.quantised import Scheme, is_plain, parts_of, scheme_of


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight that is no plain tensor, in its place.

    Attributes:
        path: Its name in the module.
        owner: The module that holds it.
        group: The owner's parameters or buffers.
        name: Its name there.
        weight: The weight.
        scheme: How it is put together.
        parts: The plain tensors that it is made of.
    """

    path: str
    owner: nn.Module
    group: dict[str, Any]
    name: str
    weight: Tensor
    scheme: Scheme
    parts: Mapping[str, Tensor]

    @property
    def targets(self) -> tuple[str, ...]:
        """What the inputs of a program for its parts are called."""
        return tuple(f"{self.path}.{name}" for name in self.parts)

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The weight, made of other tensors in the places of its parts."""
        parts = dict(zip(self.parts, tensors, strict=True))
        return self.scheme.rebuild(self.weight, self.owner, parts)


def quantised_weights(
    module: nn.Module, *, by_dynamo: bool = False
) -> tuple[QuantisedWeight, ...]:
    """Every weight of a module that is no plain tensor.

    Args:
        module: The module.
        by_dynamo: Whether what is traced is a graph that Dynamo made of its forward.

    Raises:
        CaptureError: If one is of a kind that is not known, or cannot be captured.
    """
    found = []
    for prefix, part in module.named_modules():
        for group in (part._parameters, part._buffers):
            for name, value in group.items():
                if value is None or is_plain(value):
                    continue
                path = f"{prefix}.{name}".lstrip(".")
                scheme = scheme_of(value, path)
                _refuse(scheme.refusal(value, part, by_dynamo), path, value)
                parts = parts_of(value, part, path)
                found.append(
                    QuantisedWeight(path, part, group, name, value, scheme, parts)
                )
    return tuple(found)


def _refuse(reason: str | None, path: str, weight: Tensor) -> None:
    if reason is not None:
        raise CaptureError(f"{path}, a {type(weight).__qualname__}, {reason}")


def described(
    weights: Sequence[QuantisedWeight], frames: Iterable[FrameType]
) -> str | None:
    """What to say of a trace that failed in a module that holds a quantised weight.

    Args:
        weights: The weights.
        frames: Where the failure was, the outermost first.
    """
    callers = [frame.f_locals.get("self") for frame in frames]
    for weight in weights:
        if any(caller is weight.owner for caller in callers):
            return (
                f"{weight.path} is a {type(weight.weight).__qualname__}, whose "
                "operators could not be traced here: leave that layer out of the "
                "quantisation, or quantise it in another way"
            )
    return None


@contextmanager
def taken_out(weights: Sequence[QuantisedWeight]) -> Iterator[None]:
    """Without the weights in their module."""
    with _replaced(weights, [None] * len(weights)):
        yield


@contextmanager
def put_in(
    weights: Sequence[QuantisedWeight], tensors: Sequence[Tensor]
) -> Iterator[None]:
    """With weights in the module that are made of other tensors.

    Args:
        weights: The weights.
        tensors: One for each part of each, in order.
    """
    rest, made = list(tensors), []
    for weight in weights:
        count = len(weight.parts)
        made.append(weight.rebuild(rest[:count]))
        rest = rest[count:]
    with _replaced(weights, made):
        yield


@contextmanager
def _replaced(
    weights: Sequence[QuantisedWeight], others: Sequence[Any]
) -> Iterator[None]:
    held = [weight.group[weight.name] for weight in weights]
    try:
        for weight, other in zip(weights, others, strict=True):
            weight.group[weight.name] = other
        yield
    finally:
        for weight, original in zip(weights, held, strict=True):
            weight.group[weight.name] = original
