"""Calls to flat tensors and keys."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from graphcache import CaptureError
from graphcache.signature import CallSignature, with_tensors


def forward(x: Any, rotary: Any = None, scale: float = 1.0, return_dict: bool = True):
    """A forward."""


signature = CallSignature(forward)


def test_positional_and_keyword_calls_have_one_key() -> None:
    x = torch.zeros(2, 3)
    left = signature.bind((x,), {"return_dict": False})
    right = signature.bind((), {"return_dict": False, "scale": 1.0, "x": x})
    assert left.key == right.key
    assert left.tensors == [x]
    assert left.return_dict is False


def test_nested_tensors_have_paths() -> None:
    call = signature.bind((torch.zeros(1), (torch.zeros(2), {"a": torch.zeros(3)})), {})
    assert call.paths == ["x", "rotary.0", "rotary.1.a"]


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(2, 4)},
        {"x": torch.zeros(2, 3, dtype=torch.float64)},
        {"x": torch.zeros(3, 2).T},
        {"x": torch.zeros(2, 3, device="meta")},
        {"x": torch.zeros(2, 3), "scale": 1},
        {"x": torch.zeros(2, 3), "rotary": ()},
    ],
)
def test_what_a_capture_depends_on_is_in_the_key(other: dict[str, Any]) -> None:
    assert signature.bind((torch.zeros(2, 3),), {}).key != signature.bind((), other).key


def test_return_dict_is_not_in_the_key() -> None:
    x = torch.zeros(1)
    keys = {signature.bind((x,), {"return_dict": flag}).key for flag in (True, False)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3, 4, 5), {}), ((1,), {"x": 1}), ((1,), {"unknown": 1})],
)
def test_wrong_calls_raise_as_python_does(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError) as python:
        inspect.signature(forward).bind(*args, **kwargs)
    with pytest.raises(TypeError) as ours:
        signature.bind(args, kwargs)
    assert str(ours.value) == str(python.value)


def test_open_keywords_are_bound_by_name() -> None:
    def with_rest(x: Any, **rest: Any) -> None:
        """Takes anything."""

    call = CallSignature(with_rest).bind((torch.zeros(1),), {"y": torch.zeros(2)})
    assert call.paths == ["x", "y"]


def test_positional_rest_is_refused() -> None:
    def with_rest(*tensors: Any) -> None:
        """Takes anything."""

    with pytest.raises(CaptureError, match="positional arguments without names"):
        CallSignature(with_rest)


def test_opaque_arguments_are_refused_by_name() -> None:
    with pytest.raises(CaptureError, match=r"argument rotary\.0 is a object"):
        signature.bind((torch.zeros(1), [object()]), {})


class Cache:
    """Plain data in attributes."""

    def __init__(self, keys: list[Any], steps: int = 0) -> None:
        self.keys = keys
        self.steps = steps


def test_plain_objects_are_taken_apart() -> None:
    cache = Cache([torch.zeros(1), Cache([torch.zeros(2)])])
    call = signature.bind((torch.zeros(3), cache), {})
    assert call.paths == ["x", "rotary.keys.0", "rotary.keys.1.keys.0"]
    keys = {
        signature.bind((torch.zeros(3), other), {}).key
        for other in (
            cache,
            Cache([torch.zeros(1), Cache([torch.ones(2)])]),
            Cache([torch.zeros(1), Cache([torch.zeros(3)])]),
            Cache([torch.zeros(1), Cache([torch.zeros(2)], steps=1)]),
            Cache([torch.zeros(1)]),
            {"keys": [torch.zeros(1), {"keys": [torch.zeros(2)], "steps": 0}]},
        )
    }
    assert len(keys) == 5


def test_what_a_call_is_made_of_can_be_made_again() -> None:
    class Pair(NamedTuple):
        left: Tensor
        right: int

    class Table(dict[str, Any]):
        """A dict of its own type."""

    given = [Pair(torch.zeros(1), 2), Cache([torch.zeros(2)]), Table(a=torch.zeros(3))]
    call = signature.bind((torch.zeros(4), given), {})
    tensors = [tensor + 1 for tensor in call.tensors]
    made = with_tensors(call, tensors)
    pair, cache, table = made["rotary"]
    assert isinstance(pair, Pair)
    assert isinstance(cache, Cache)
    assert isinstance(table, Table)
    assert signature.bind((), made).key == call.key
    assert signature.bind((), made).tensors == tensors
    # The caller's own are others.
    assert cache is not given[1]
    assert cache.keys is not given[1].keys


def test_an_object_that_holds_what_is_not_plain_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"rotary\.keys\.0 is a function"):
        signature.bind((torch.zeros(1), Cache([forward])), {})


def test_a_namespace_is_a_container() -> None:
    def forward(options: SimpleNamespace) -> Tensor:
        return options.x

    options = SimpleNamespace(x=torch.zeros(2), name="a")
    call = CallSignature(forward).bind((options,), {})
    rebuilt = with_tensors(call, [torch.ones(2)])["options"]
    assert (rebuilt.name, rebuilt.x.tolist()) == ("a", [1.0, 1.0])
    assert options.x.tolist() == [0.0, 0.0]
