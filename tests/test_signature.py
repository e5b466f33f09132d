"""Calls to flat tensors and keys."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from graphcache import CaptureError
from graphcache.signature import CallSignature


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
