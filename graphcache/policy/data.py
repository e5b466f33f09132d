"""Plain data: the parts of a policy as numbers, text, lists and dicts, and back.

What is read and written is said by the types of the parts' own fields, so that a new
part needs no more than a line in `ROLES`. A part is a dict with its ``kind``, the name
of its class, and its fields; one without fields is its name alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.fastercache import Inside
from graphcache.policy.parts import FUNCTIONS, PARTS, ROLES, SCALARS
from graphcache.policy.scalars import Scalar
from graphcache.policy.smoothcache import SmoothCacheSchedule

KIND = "kind"
_LEAVES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""What YAML 1.1 takes for text: 1e-3."""


def nearest(name: object, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest that is, or all of them."""
    listed = list(known)
    close = difflib.get_close_matches(str(name), listed, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(listed) or 'none'}"


Number = float | Literal["inf", "-inf", "nan"]
"""A number as JSON, which has none that is not finite."""


def number(value: float) -> Number:
    """A number as JSON."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def hints(kind: Any) -> dict[str, Any]:
    """The declared types of the fields of a class or the parameters of a function."""
    found = get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        return {field.name: found[field.name] for field in dataclasses.fields(kind)}
    return {name: hint for name, hint in found.items() if name != "return"}


def fields_of(value: Any, where: str) -> dict[str, Any]:
    """The fields of a dataclass as plain data.

    Args:
        value: The dataclass.
        where: What it is, for messages: ``config.decision``.

    Raises:
        PolicyError: If one is Python, which cannot be data.
    """
    return {
        name: written(getattr(value, name), hint, f"{where}.{name}")
        for name, hint in hints(type(value)).items()
    }


def written(value: Any, hint: Any, where: str) -> Any:
    """A field as plain data.

    Args:
        value: What it holds.
        hint: What it is declared to hold.
        where: What it is, for messages.

    Raises:
        PolicyError: If it is Python, which cannot be data.
    """
    if isinstance(value, bool) and hint is int:
        # Masks hold truth values, and say that they hold numbers.
        return int(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (tuple, list)):
        element = _elements(hint, len(value))
        return [
            written(item, inner, f"{where}[{index}]")
            for index, (item, inner) in enumerate(zip(value, element, strict=True))
        ]
    return _written_object(value, where)


def _written_object(value: Any, where: str) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor):
        return _written_tensor(value, where)
    if isinstance(value, Scalar):
        return _written_scalar(value, where)
    if isinstance(value, SmoothCacheSchedule):
        rows = {name: list(map(int, row)) for name, row in value.computed.items()}
        return {"model": value.model, "layers": dict(value.layers), "computed": rows}
    if type(value) in PARTS:
        fields = fields_of(value, where)
        name = type(value).__name__
        return {KIND: name, **fields} if fields else name
    for name, known in FUNCTIONS.items():
        if value is known:
            return name
    raise PolicyError(_python(value, where))


def _python(value: Any, where: str) -> str:
    what = getattr(value, "__qualname__", type(value).__qualname__)
    return (
        f"{where} is {what}, which is Python and cannot be data: use a part of "
        "graphcache.policy, such as a Mask in place of a decision of your own, or keep "
        "this config in Python"
    )


def _written_tensor(value: Tensor, where: str) -> list[float]:
    if value.dtype is not torch.float32:
        raise PolicyError(
            f"{where} is {value.dtype}, and a list of numbers is read as "
            "torch.float32: convert it first"
        )
    numbers: list[float] = value.tolist()
    return numbers


def _written_scalar(value: Scalar, where: str) -> dict[str, Any]:
    for kind, function in SCALARS.items():
        if value.of is function:
            return {KIND: kind, "name": value.name}
    if type(value.of) is Inside:
        return {KIND: "inside", "name": value.name, **fields_of(value.of, where)}
    raise PolicyError(_python(value.of, f"{where}, the number {value.name},"))


def read(data: Any, hint: Any, where: str) -> Any:
    """A field from plain data.

    Args:
        data: What stands there.
        hint: What the field is declared to hold.
        where: What it is, for messages.

    Raises:
        PolicyError: If it is of another type, or out of its range.
    """
    members = _members(hint)
    if data is None and (NoneType in members or _is_callable(members)):
        return None
    kinds = _kinds(members)
    if kinds and isinstance(data, (str, Mapping)):
        return _read_part(data, kinds, where)
    for member in members:
        if (reader := _READERS.get(member)) is not None and (
            isinstance(data, (str, Mapping))
        ):
            return reader(data, where)
    if isinstance(data, Sequence) and not isinstance(data, str):
        for member in members:
            if get_origin(member) in (tuple, list, Sequence):
                return _read_sequence(data, member, where)
    if _is_callable(members):
        return _read_function(data, where)
    return _read_leaf(data, members, kinds, where)


def read_fields(
    given: Mapping[str, Any], make: Callable[..., Any], where: str, what: str
) -> Any:
    """Call a class or a function with arguments from plain data.

    Args:
        given: The arguments, by name.
        make: What is called; its parameters have types.
        where: Where the arguments stand, for messages.
        what: What is made, for messages.

    Raises:
        PolicyError: If an argument is unknown, missing, of another type, or refused.
    """
    known = hints(make)
    for name in given:
        if name not in known:
            raise PolicyError(
                f"{where}: {what} has no {name!r}: {nearest(name, known)}"
            )
    for name in _required(make):
        if name not in given:
            raise PolicyError(f"{where}: {what} needs {name!r}")
    values = {n: read(data, known[n], f"{where}.{n}") for n, data in given.items()}
    try:
        return make(**values)
    except (PolicyError, ValueError, TypeError) as error:
        raise PolicyError(f"{where}: {error}") from error


def _required(make: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(make).parameters.values()
    return [entry.name for entry in parameters if entry.default is entry.empty]


def _members(hint: Any) -> tuple[Any, ...]:
    union = get_origin(hint) in (Union, UnionType)
    return get_args(hint) if union else (hint,)


def _is_callable(members: tuple[Any, ...]) -> bool:
    return any(get_origin(member) is Callable for member in members)


def _kinds(members: tuple[Any, ...]) -> dict[str, type]:
    """The parts that may stand for a type, by name."""
    found = [
        part
        for member in members
        for part in ROLES.get(member, (member,) if member in PARTS else ())
    ]
    return {part.__name__: part for part in found}


def _elements(hint: Any, count: int) -> list[Any]:
    """The type of each item of a sequence."""
    for member in _members(hint):
        if get_origin(member) in (tuple, list, Sequence):
            items = get_args(member)
            if get_origin(member) is tuple and items[-1] is not Ellipsis:
                return list(items) if len(items) == count else [items[0]] * count
            return [items[0]] * count
    return [Any] * count


def _read_part(data: Any, kinds: Mapping[str, type], where: str) -> Any:
    fields = {KIND: data} if isinstance(data, str) else dict(data)
    kind = fields.pop(KIND, None)
    if kind is None:
        if len(kinds) > 1:
            raise PolicyError(f"{where} needs a {KIND!r}: {', '.join(kinds)}")
        (kind,) = kinds
    if not isinstance(kind, str) or kind not in kinds:
        raise PolicyError(f"{where} cannot be {kind!r}: {nearest(kind, kinds)}")
    return read_fields(fields, kinds[kind], where, kind)


def _read_sequence(data: Sequence[Any], hint: Any, where: str) -> Any:
    items, kind = get_args(hint), get_origin(hint)
    if kind is tuple and items[-1] is not Ellipsis and len(items) != len(data):
        raise PolicyError(f"{where} must be {len(items)} values, not {data!r}")
    found = [
        read(item, inner, f"{where}[{index}]")
        for index, (item, inner) in enumerate(
            zip(data, _elements(hint, len(data)), strict=True)
        )
    ]
    return found if kind is list else tuple(found)


def _read_function(data: Any, where: str) -> Any:
    if isinstance(data, str) and data in FUNCTIONS:
        return FUNCTIONS[data]
    raise PolicyError(
        f"{where} is a function, which cannot be data: leave it out, and set it in "
        "Python"
    )


def _read_leaf(data: Any, members: tuple[Any, ...], kinds: Any, where: str) -> Any:
    found = _number(data) if float in members else data
    for leaf in _LEAVES:
        if leaf in members and type(found) is leaf:
            return found
    wanted = [text for leaf, text in _LEAVES.items() if leaf in members]
    wanted += ["a list"] * any(
        get_origin(m) in (tuple, list, Sequence) for m in members
    )
    wanted += [f"one of {', '.join(kinds)}"] * bool(kinds)
    wanted += [text for member, text in _READER_TEXTS.items() if member in members]
    wanted += ["null"] * (NoneType in members)
    raise PolicyError(f"{where} must be {' or '.join(wanted)}, not {data!r}")


def _number(data: Any) -> Any:
    """A float where the data is a number, or text that YAML and JSON have for one."""
    if type(data) is int:
        return float(data)
    special = data in ("inf", "-inf", "nan") if isinstance(data, str) else False
    if special or (isinstance(data, str) and _EXPONENT.fullmatch(data)):
        return float(data)
    return data


def _read_dtype(data: Any, where: str) -> torch.dtype:
    found = getattr(torch, data, None) if isinstance(data, str) else None
    if not isinstance(found, torch.dtype):
        raise PolicyError(f"{where}: torch has no dtype {data!r}")
    return found


def read_scalar(data: Any, where: str) -> Scalar:
    """A number that the host works out for each step.

    Raises:
        PolicyError: If there is no such number.
    """
    if not isinstance(data, Mapping):
        raise PolicyError(f"{where} must be a dict with a {KIND!r}, not {data!r}")
    fields = dict(data)
    kind, name = fields.pop(KIND, None), fields.pop("name", None)
    if not isinstance(name, str):
        raise PolicyError(f"{where} needs a 'name', which is text")
    if kind == "inside":
        return Scalar(name, read_fields(fields, Inside, where, kind))
    if not isinstance(kind, str) or kind not in SCALARS:
        raise PolicyError(
            f"{where} cannot be {kind!r}: {nearest(kind, (*SCALARS, 'inside'))}"
        )
    if fields:
        raise PolicyError(f"{where}: {kind} has no {next(iter(fields))!r}")
    return Scalar(name, SCALARS[kind])


_SCHEDULE = ("model", "layers", "steps", "computed")


def _read_schedule(data: Any, where: str) -> SmoothCacheSchedule:
    """What `SmoothCacheSchedule.to_json` wrote, or its fields."""
    if not isinstance(data, Mapping):
        raise PolicyError(f"{where} must be a schedule, a dict, not {data!r}")
    for name in data:
        if "computed" in data and name not in _SCHEDULE:
            raise PolicyError(
                f"{where}: a schedule has no {name!r}: {nearest(name, _SCHEDULE)}"
            )
    try:
        return SmoothCacheSchedule.from_json(json.dumps(data))
    except (PolicyError, TypeError) as error:
        raise PolicyError(f"{where}: {error}") from error


_READERS: dict[Any, Callable[[Any, str], Any]] = {
    torch.dtype: _read_dtype,
    Scalar: read_scalar,
    SmoothCacheSchedule: _read_schedule,
}
_READER_TEXTS = {
    torch.dtype: "the name of a torch.dtype",
    Scalar: "a dict that says how the number is worked out",
    SmoothCacheSchedule: "a schedule",
}
