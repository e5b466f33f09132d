"""What a forward does to the containers and objects that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import CaptureError, EngineError, never_reuse
from graphcache.capture.writes import writes_between
from tests.capture.running import equal
from tests.doors import behind_dynamo
from tests.models import TinyAttention


class Cache:
    """Keys of earlier frames."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self.note: str | None = None


def write_numbers(_: Any, x: Tensor, cache: Cache, flags: Any) -> None:
    flags["calls"] = flags.get("calls", 0) + 1
    flags.pop("once", None)
    cache.note = "written"


def write_once(module: Any, x: Tensor, cache: Cache, flags: Any) -> None:
    if not module.calls:
        cache.note = "first"
    module.calls.append(1)


def assign(make: Callable[[Any, Tensor], Tensor]) -> Callable[..., None]:
    """Gives the cache other keys."""

    def write(module: Any, x: Tensor, cache: Cache, flags: Any) -> None:
        cache.keys = make(module, x)

    return write


def write_nested(_: Any, x: Tensor, cache: Cache, flags: Any) -> None:
    flags["layers"] = [{"k": x + 1, "n": 1}, (x, None)]


WRITES: dict[str, Callable[..., None]] = {
    "read": lambda *_: None,
    "given": assign(lambda module, x: x),
    "tensor": assign(lambda module, x: x * 2),
    "projected": assign(lambda module, x: module.attn.to_k(x)),
    "in place": lambda module, x, cache, flags: cache.keys.add_(1),
    "append": lambda module, x, cache, flags: flags["seen"].append(x),
    "function": lambda module, x, cache, flags: flags["seen"].append(torch.relu),
    "nested": write_nested,
    "number": write_numbers,
    "once": write_once,
}


class Cached(nn.Module):
    """Adds what a cache holds, and may write to it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.calls: list[int] = []
        self.attn = TinyAttention()

    def forward(self, x: Tensor, timestep: Tensor, cache: Cache, flags: Any) -> Tensor:
        """f32[1, 2, 8] to the same."""
        WRITES[self.how](self, x, cache, flags)
        return self.attn(x) + cache.keys * flags.get("calls", 1) + timestep


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


def both_doors(how: str) -> list[Any]:
    """Of the module, and of what each door makes of it."""
    made = [Cached(how).eval().requires_grad_(False) for _ in range(3)]
    return [made[0], compiled(made[1]), behind_dynamo(made[2], never_reuse())]


def copied(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "cache": Cache(given["cache"].keys), "flags": {"seen": []}}


@pytest.mark.parametrize("how", ["tensor", "projected", "append", "nested", "given"])
def test_a_tensor_that_is_put_there_is_put_there_by_every_call(how: str) -> None:
    torch.manual_seed(0)
    module, *subjects = both_doors(how)
    for subject in subjects:
        state = module.state_dict()
        subject.load_state_dict(
            {k: state[k.removeprefix("_orig_mod.")] for k in subject.state_dict()}
        )
        given = {**inputs(1.0), "flags": {"seen": []}}
        left, right = copied(given), copied(given)
        with torch.no_grad():
            for seed in (2.0, 3.0, 4.0):
                x = torch.full((1, 2, 8), seed) * torch.arange(8.0)
                left["x"] = right["x"] = x
                assert torch.equal(subject(**left), module(**right))
                assert equal(vars(left["cache"]), vars(right["cache"]))
                assert equal(left["flags"], right["flags"])
                assert (left["cache"].keys is x) == (right["cache"].keys is x)


def test_a_write_in_place_is_refused() -> None:
    subject = compiled(Cached("in place").eval())
    given = inputs()
    with torch.no_grad(), pytest.raises(CaptureError, match=r"writes to cache\.keys:"):
        subject(**given)
    assert torch.equal(given["cache"].keys, inputs()["cache"].keys)
    assert given["flags"] == inputs()["flags"]


def test_what_is_no_data_is_refused() -> None:
    subject = compiled(Cached("function").eval())
    with torch.no_grad(), pytest.raises(CaptureError, match=r"flags\.seen\.0 what is"):
        subject(**inputs())


def test_writes_that_a_second_call_does_not_repeat_are_refused() -> None:
    subject = compiled(Cached("once").eval())
    with torch.no_grad(), pytest.raises(CaptureError, match="writes to calls"):
        subject(**inputs())


def test_an_engine_has_no_place_for_a_tensor_that_is_put_there(tmp_path: Any) -> None:
    subject = compiled(Cached("tensor").eval())
    with torch.no_grad():
        subject(**inputs())
    with pytest.raises(EngineError, match=r"writes tensors to cache\.keys"):
        graphcache.export(subject, tmp_path / "engine")


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
