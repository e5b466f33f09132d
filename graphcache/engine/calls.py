"""Calls: the signature of a forward, and what a call has to be like, as records."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from graphcache.engine.manifest import (
    MANIFEST_FILE,
    CallEntry,
    Container,
    ModuleRecord,
    Parameter,
    PlainLeaf,
    TensorLeaf,
)
from graphcache.engine.plain import (
    plain,
    restorable,
    type_name,
    type_record,
    value_of,
)
from graphcache.errors import EngineError
from graphcache.program import TensorType
from graphcache.signature import PLAIN, CallSignature, children


def parameters(signature: CallSignature) -> tuple[Parameter, ...]:
    """The parameters of a forward.

    Raises:
        EngineError: If a default is no plain value.
    """
    found = []
    for name, parameter in signature.signature.parameters.items():
        default = parameter.default
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if default is inspect.Parameter.empty:
            found.append(Parameter(name, parameter.kind.name))
        else:
            said = restorable(f"the default of {name}", default)
            found.append(Parameter(name, parameter.kind.name, said))
    return tuple(found)


def signature_of(module: ModuleRecord) -> CallSignature:
    """Binds calls as the forward that was compiled does.

    Raises:
        EngineError: If no forward can have such parameters.
    """

    def forward(*args: Any, **kwargs: Any) -> None:
        """Has the signature alone."""

    stand_in: Any = forward
    stand_in.__signature__ = _signature(module)
    bound: Callable[..., Any] = stand_in
    return CallSignature(bound)


def _signature(module: ModuleRecord) -> inspect.Signature:
    found = []
    try:
        for parameter in module.parameters:
            kind = inspect._ParameterKind[parameter.kind]
            default = inspect.Parameter.empty
            if parameter.default is not None:
                default = value_of(parameter.default)
            found.append(inspect.Parameter(parameter.name, kind, default=default))
        if module.open:
            kind = inspect.Parameter.VAR_KEYWORD
            found.append(inspect.Parameter("kwargs", kind))
        return inspect.Signature(found)
    except (KeyError, ValueError, IndexError) as error:
        # A kind that there is not is a key error, an empty name an index error.
        raise EngineError(
            f"{MANIFEST_FILE}: no forward has such parameters ({error}): export anew"
        ) from error


def entries(arguments: Mapping[str, Any]) -> tuple[CallEntry, ...]:
    """What a call is like, one entry for each of its values.

    Args:
        arguments: By parameter name.
    """
    return tuple(
        entry for name, value in arguments.items() for entry in _entries(name, value)
    )


def _entries(path: str, value: Any) -> Iterator[CallEntry]:
    if isinstance(value, Tensor):
        # Strides do not matter: an argument is laid out as the programs expect it.
        yield TensorLeaf(path, type_record(TensorType.of(value)))
    elif isinstance(value, PLAIN):
        yield PlainLeaf(path, plain(value))
    else:
        held = list(children(value))
        names = tuple(str(name) for name, _ in held)
        yield Container(path, type_name(type(value)), names)
        for name, item in held:
            yield from _entries(f"{path}.{name}", item)


def difference(wanted: Sequence[CallEntry], given: Sequence[CallEntry]) -> str | None:
    """The first thing in which a call differs from what it has to be like, as text."""
    for want, got in zip_longest(wanted, given):
        if got is None or (want is not None and want.path != got.path):
            return f"{want.path} is missing, and the engine takes {_shown(want)}"
        if want is None:
            return f"{got.path} is {_shown(got)}, and the engine takes none"
        if want != got:
            return f"{got.path} is {_shown(got)}, and the engine takes {_shown(want)}"
    return None


def likeness(wanted: Sequence[CallEntry], given: Sequence[CallEntry]) -> int:
    """How many entries of a call are as they have to be."""
    return sum(want == got for want, got in zip(wanted, given, strict=False))


def _shown(entry: CallEntry) -> str:
    if isinstance(entry, TensorLeaf):
        shape = list(entry.type.shape or ())
        return f"{entry.type.dtype}{shape} on {entry.type.device}"
    if isinstance(entry, PlainLeaf):
        return entry.value.text
    return f"{entry.type} of {', '.join(entry.names) or 'nothing'}"
