"""What a forward does to the containers and objects that it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import CaptureError, never_reuse
from graphcache.capture.writes import writes_between
from tests.models import TinyAttention


class Cache:
    """Keys of earlier frames."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self.note: str | None = None


class Cached(nn.Module):
    """Adds what a cache holds, and may write to it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.attn = TinyAttention()

    def forward(self, x: Tensor, timestep: Tensor, cache: Cache, flags: Any) -> Tensor:
        """f32[1, 2, 8] to the same."""
        if self.how == "tensor":
            cache.keys = x
        elif self.how == "in place":
            cache.keys += 1
        elif self.how == "append":
            flags["seen"].append(x)
        elif self.how == "number":
            flags["calls"] = flags.get("calls", 0) + 1
            flags.pop("once", None)
            cache.note = "written"
        return self.attn(x) + cache.keys * flags.get("calls", 1)


def inputs(seed: float = 0.0) -> dict[str, Any]:
    return {
        "x": torch.full((1, 2, 8), seed),
        "timestep": torch.tensor([500.0]),
        "cache": Cache(torch.full((1, 2, 8), seed + 2)),
        "flags": {"seen": [], "once": True},
    }


def compiled(module: nn.Module) -> nn.Module:
    return graphcache.compile(module, never_reuse(), backend="eager")


def test_an_object_s_tensors_are_arguments() -> None:
    module = Cached("read").eval()
    subject = compiled(module)
    with torch.no_grad():
        for seed in (0.0, 1.0):
            assert torch.equal(subject(**inputs(seed)), module(**inputs(seed)))
    assert subject.cache_stats.captures == 1


@pytest.mark.parametrize(
    ("how", "path"),
    [
        ("tensor", r"cache\.keys"),
        ("in place", r"cache\.keys"),
        ("append", r"flags\.seen\.0"),
    ],
)
def test_a_tensor_that_is_put_there_is_refused(how: str, path: str) -> None:
    subject = compiled(Cached(how).eval())
    given = inputs()
    with torch.no_grad(), pytest.raises(CaptureError, match=f"writes to {path}:"):
        subject(**given)
    assert torch.equal(given["cache"].keys, inputs()["cache"].keys)
    assert given["flags"] == inputs()["flags"]


def test_a_number_that_is_put_there_is_put_there_at_every_call() -> None:
    module = Cached("number").eval()
    subject = compiled(module)
    left, right = inputs(), inputs()
    with torch.no_grad():
        for calls in (1, 2, 3):
            assert torch.equal(subject(**left), module(**right))
            assert left["flags"] == right["flags"] == {"seen": [], "calls": calls}
            assert left["cache"].note == right["cache"].note == "written"
    # What a call finds there is part of its key.
    assert subject.cache_stats.captures == 3


def test_writes_are_told_and_repeated() -> None:
    before = {"a": [1, {"b": 2}], "c": {"d": 1, 3: 4}, "same": torch.zeros(1)}
    after = {"a": [1, {"b": 5}, 6], "c": {3: 4, "e": None}, "same": before["same"]}
    writes = writes_between(before, after)
    assert [write.path for write in writes] == ["a.1.b", "a.2", "c.e", "c.d"]
    assert all(write.is_plain for write in writes)
    for write in writes:
        write.apply(before)
    assert before == after
