"""What users hold of a module stays the module's own, whatever a capture does."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

import graphcache
from graphcache import CaptureError, never_reuse
from graphcache.capture.state import State, kept, shell
from tests.doors import behind_dynamo
from tests.models import TinyAttention
from tests.zoo import ZOO, denoise, make


class Processor:
    """An object that is no module, with state of its own."""

    def __init__(self) -> None:
        self.scales = [1.0, 2.0]
        self.seen: list[Tensor] = []


class Holder(nn.Module):
    """Holds containers of every kind, and may write to them."""

    def __init__(self, how: str = "read") -> None:
        super().__init__()
        self.how = how
        self.attn = TinyAttention()
        self.numbers = [1.0, [2.0, {"deep": [3.0]}]]
        self.table = {"a": [1.0], "order": OrderedDict(x=[1], y=2)}
        self.pair = ([1.0], {"b": [2.0]})
        self.names = {"a", "b"}
        self.queue = deque([1.0])
        self.counts: Any = defaultdict(list, k=[1])
        self.processor = Processor()
        self.space = SimpleNamespace(values=[1.0])
        self.attn.parts = [self.attn.to_q]
        self.call = partial(self.scaled, by=2.0)

    def scaled(self, x: Tensor, by: float) -> Tensor:
        """A method that an attribute is bound to."""
        return x * by

    def containers(self) -> list[Any]:
        """Everything that is held, the nested ones too."""
        return [
            *(self.numbers, self.numbers[1], self.numbers[1][1]),  # type: ignore[index]
            *(self.table, self.table["a"], self.table["order"]),
            *(self.pair, self.pair[0], self.pair[1], self.pair[1]["b"]),
            *(self.names, self.queue, self.counts, self.counts["k"]),
            *(self.processor, self.processor.scales, self.processor.seen),
            *(self.space, self.space.values, self.attn.parts, self.attn.to_q),
        ]

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """f32[1, 2, 8] to the same."""
        out = self.call(self.attn(x)) * self.numbers[0] + self.space.values[0]
        if self.how == "fail":
            self.processor.seen.append(out)
            self.numbers.append(4.0)
            self.table["new"] = [out]
            self.queue.clear()
            self.names.add("c")
            self.processor.scales[0] = 5.0
            self.counts["made"].append(1)
            self.attn.note = "set"
            out = out * out.sum().item()
        return out + timestep


def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(1, 2, 8), "timestep": torch.tensor([500.0])}


def built(how: str = "read") -> Holder:
    torch.manual_seed(0)
    return Holder(how).eval().requires_grad_(False)


def contents(module: Holder) -> list[Any]:
    """What each container holds."""
    return [
        dict(vars(value))
        if isinstance(value, (Processor, SimpleNamespace))
        else copy.copy(value)
        for value in module.containers()
        if not isinstance(value, nn.Module)
    ]


@pytest.mark.parametrize("door", ["direct", "dynamo"])
def test_containers_are_the_module_s_own_after_a_capture(door: str) -> None:
    module = built()
    held, before = module.containers(), contents(module)
    never = never_reuse()
    direct = door == "direct"
    subject = (
        graphcache.compile(module, never, backend="eager")
        if direct
        else behind_dynamo(module, never)
    )
    given = inputs()
    with torch.no_grad():
        assert torch.equal(subject(**given), built()(**given))
    assert all(a is b for a, b in zip(held, module.containers(), strict=True))
    assert contents(module) == before


def test_a_failed_capture_leaves_the_module_as_it_was() -> None:
    module = built("fail")
    held, before = module.containers(), contents(module)
    subject = graphcache.compile(module, never_reuse(), backend="eager")
    with torch.no_grad(), pytest.raises(CaptureError, match="writes to counts"):
        subject(**inputs())
    assert all(a is b for a, b in zip(held, module.containers(), strict=True))
    assert contents(module) == before
    assert not hasattr(module.attn, "note")


def test_a_trace_is_taken_back_and_a_call_is_not() -> None:
    module = built()
    with kept(module, always=True):
        module.processor.seen.append(torch.zeros(1))
        module.queue.appendleft(0.0)
        module.table = {}
    assert module.processor.seen == []
    assert list(module.queue) == [1.0]
    assert module.table["a"] == [1.0]
    with kept(module, always=False):
        module.numbers.append(5.0)
    assert module.numbers[-1] == 5.0


def test_what_is_in_a_circle_is_looked_at_once() -> None:
    module = built()
    module.numbers.append(module.numbers)  # type: ignore[arg-type]
    state = State(module)
    module.numbers.pop()
    state.put_back()
    assert module.numbers[-1] is module.numbers


def test_a_shell_has_the_tensors_and_objects_and_other_tables() -> None:
    module = built()
    module.attn.again = module.attn.to_q
    module.attn.bound = module.attn.to_q.forward
    made: Any = shell(module)
    assert [p for p, _ in made.named_modules()] == [
        p for p, _ in module.named_modules()
    ]
    for ours, theirs in zip(made.parameters(), module.parameters(), strict=True):
        assert ours is theirs
    assert made.processor is module.processor
    assert made.numbers is module.numbers
    assert made.attn is not module.attn
    assert made.attn.again is made.attn.to_q
    assert made.attn.parts[0] is made.attn.to_q
    assert made.attn.bound.__self__ is made.attn.to_q
    assert made.call.func.__self__ is made
    made.attn.to_q._parameters["bias"] = None
    made.attn.to_k.extra = 1
    assert module.attn.to_q.bias is not None
    assert not hasattr(module.attn.to_k, "extra")


LARGE = [pytest.param(name, marks=pytest.mark.large) for name in ("flux", "wan")]


@pytest.mark.parametrize("name", ["cogvideox", *LARGE])
def test_an_adapter_of_peft_behind_both_doors(name: str) -> None:
    tiny = ZOO[name]

    def adapted() -> Any:
        module: Any = make(tiny)
        torch.manual_seed(3)
        config = LoraConfig(
            r=2, target_modules=["to_q", "to_v"], init_lora_weights=False
        )
        module.add_adapter(config, adapter_name="a")
        return module.eval().requires_grad_(False)

    want = denoise(adapted(), tiny, 2)
    assert not all(map(torch.equal, want, denoise(make(tiny), tiny, 2)))
    for direct in (True, False):
        module = adapted()
        held = {
            path: (part.merged_adapters, part.scaling)
            for path, part in module.named_modules()
            if hasattr(part, "merged_adapters")
        }
        assert held
        subject = (
            graphcache.compile(module, never_reuse(), backend="eager")
            if direct
            else behind_dynamo(module, never_reuse())
        )
        assert all(map(torch.equal, want, denoise(subject, tiny, 2)))
        for path, (merged, scaling) in held.items():
            assert module.get_submodule(path).merged_adapters is merged
            assert module.get_submodule(path).scaling is scaling
