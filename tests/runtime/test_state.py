"""Whatever the forward reads is seen at the next call, and recognised if it comes back.

The oracle is the module itself, called eager after the change.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import graphcache
from graphcache import CaptureError
from graphcache.runtime.state import state_of
from tests.models import TinyTransformer, run_loop, same, tiny_inputs
from tests.zoo import ZOO, first_inputs, make
from tests.zoo import models as helpers

BOOST = 1.0


def scaled(hidden: Tensor, factor: float) -> Tensor:
    """A function of the file, found by its name."""
    return hidden * factor * BOOST


@functools.lru_cache
def remembered(factor: float) -> float:
    """A function behind a cache."""
    return factor * BOOST


def helped(hidden: Tensor) -> Tensor:
    """Goes through another file's functions, and torch's own."""
    return helpers.randn(None, 1).shape[0] * functional.relu(hidden) + remembered(1.0)


def _adding(amount: float) -> Callable[[Tensor], Tensor]:
    def add(hidden: Tensor) -> Tensor:
        return hidden + amount

    return add


class Processor:
    """A plain object that the forward calls."""

    flavour = 1.0
    options: ClassVar[dict[str, float]] = {"shift": 0.0}

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scale."""
        return self._scaled(hidden) * self.flavour

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale + self.options["shift"]


class Other(Processor):
    """A processor of another class."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scale and shift."""
        return super().__call__(hidden) + 0.25


class Slotted:
    """An object without a dict."""

    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 1.0


class Factor(float):
    """A number of a class of its own."""


class Named(list[float]):
    """A list that has an attribute."""

    factor = 1.0


class Point:
    """An object that is held in a set."""

    def __init__(self) -> None:
        self.scale = 1.0


class Extra(nn.Module):
    """A module whose weights are outside the tree."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(8), requires_grad=False)


class Rich(TinyTransformer):
    """A transformer whose forward reads all kinds of state."""

    def __init__(self) -> None:
        super().__init__()
        self._active = ["a"]
        self._scales = {"a": 1.0, "b": 1.5}
        self._table = [[1.0, 0.5], [0.25]]
        self.processor: Any = Processor()
        self.options = SimpleNamespace(inner=SimpleNamespace(scale=1.0))
        self.switches = {"double"}
        self.tensors = [torch.full((8,), 0.5)]
        self.pair = (Processor(2.0), 1)
        self.queue = deque([1.0])
        self.slotted = Slotted()
        self.outside = [Extra()]
        self.factor = Factor(1.0)
        self.named = Named([1.0])
        self.points = {Point()}
        self.array = np.ones(1)
        self.function = _adding(0.5)
        self.partial = functools.partial(scaled, factor=1.5)
        self.optional: nn.Module | None = nn.Linear(8, 8)
        self.proj = nn.Linear(8, 8)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        return_dict: bool = False,
    ) -> Any:
        """As `TinyTransformer`, with all of the state on top."""
        hidden = super().forward(hidden_states, encoder_hidden_states, timestep)[0]
        for name in self._active:
            hidden = hidden * self._scales[name]
        hidden = hidden * self._table[0][0] + self._table[1][0]
        hidden = self.pair[0](self.processor(hidden)) * self.options.inner.scale
        if "double" in self.switches:
            hidden = hidden * 2
        hidden = hidden + self.tensors[0] + self.outside[0].bias
        hidden = hidden * self.queue[0] * self.slotted.scale
        hidden = hidden * self.factor * self.named.factor * self.named[0]
        hidden = hidden * next(iter(self.points)).scale * float(self.array[0])
        hidden = helped(hidden)
        hidden = scaled(self.partial(self.function(hidden)), 1.25)
        if self.optional is not None:
            hidden = self.optional(hidden)
        return (self.proj(hidden),)


def rich() -> Rich:
    torch.manual_seed(0)
    return Rich().eval().requires_grad_(False)


def _set(path: str, value: Any) -> Callable[[Rich], None]:
    def change(module: Rich) -> None:
        owner, _, name = path.rpartition(".")
        setattr(
            functools.reduce(getattr, filter(None, owner.split(".")), module),
            name,
            value,
        )

    return change


def _channels_last(module: Rich) -> None:
    weight = module.proj.weight
    module.proj.weight = nn.Parameter(weight.t().contiguous().t(), requires_grad=False)


def _swap_data(module: Rich) -> None:
    module.proj.weight.data = module.proj.weight.data.t().contiguous().t()


def _tie(module: Rich) -> None:
    assert isinstance(module.optional, nn.Linear)
    module.optional.weight = module.proj.weight


CHANGES: dict[str, Callable[[Rich], Any]] = {
    "private attribute": _set("_active", ["b"]),
    "item of a private list": lambda m: m._active.__setitem__(0, "b"),
    "longer list": lambda m: m._active.append("b"),
    "item of a private dict": lambda m: m._scales.__setitem__("a", 3.0),
    "nested list": lambda m: m._table[0].__setitem__(0, 2.0),
    "nested list within": lambda m: m._table.__setitem__(1, [4.0]),
    "attribute of a processor": _set("processor.scale", 3.0),
    "another processor": _set("processor", Processor(2.5)),
    "processor of another class": _set("processor", Other()),
    "class of a processor": _set("processor.__class__", Other),
    "nested namespace": _set("options.inner.scale", 0.5),
    "set": lambda m: m.switches.discard("double"),
    "tensor in a list": lambda m: m.tensors.__setitem__(0, torch.zeros(8)),
    "values of a tensor in a list": lambda m: m.tensors[0].fill_(3.0),
    "object in a tuple": lambda m: setattr(m.pair[0], "scale", 7.0),
    "deque": lambda m: m.queue.__setitem__(0, 5.0),
    "slot": _set("slotted.scale", 4.0),
    "weight of a module in a list": lambda m: m.outside[0].bias.fill_(2.0),
    "module in a list": lambda m: m.outside.__setitem__(
        0, Extra().requires_grad_(False)
    ),
    "number of a class of its own": _set("factor", Factor(2.0)),
    "attribute of a list": _set("named.factor", 3.0),
    "attribute of an object in a set": lambda m: setattr(
        next(iter(m.points)), "scale", 3.0
    ),
    "array": lambda m: m.array.__setitem__(0, 4.0),
    "table of a class": lambda m: Processor.options.update(
        shift=Processor.options["shift"] + 1.0
    ),
    "another closure": _set("function", _adding(0.75)),
    "another partial": _set("partial", functools.partial(scaled, factor=0.5)),
    "a module that goes": _set("optional", None),
    "a layer of another size": _set(
        "blocks.0.ff",
        nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8)).requires_grad_(False),
    ),
    "class of a layer": _set(
        "blocks.1.ff.__class__",
        type(
            "Doubled",
            (nn.Linear,),
            {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)},
        ),
    ),
    "gain of a block": _set("blocks.1.gain", 3.0),
    "strides of a weight": _channels_last,
    "strides of a weight's data": _swap_data,
    "bias that goes": lambda m: m.proj.register_parameter("bias", None),
    "tied weights": _tie,
    "dropped block": lambda m: m.blocks.__delitem__(1),
    "order of blocks": lambda m: setattr(
        m, "blocks", nn.ModuleList(reversed(m.blocks))
    ),
}


def call(module: Any, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        (output,) = module(**tiny_inputs(**kwargs))
    return output.clone()


def compiled(module: nn.Module, policy: Any = None, **options: Any) -> Any:
    options = {"backend": "eager", **options}
    return graphcache.compile(module, policy or graphcache.never_reuse(), **options)


@pytest.mark.parametrize("part", range(4))
def test_a_change_is_seen_at_the_next_call(part: int) -> None:
    """One change upon another, each in the midst of a loop."""
    module = rich()
    subject = compiled(module)
    timestep = 999.0
    before = call(subject, timestep=timestep)
    for name, change in list(CHANGES.items())[part::4]:
        change(module)
        timestep -= 10
        after = call(subject, timestep=timestep)
        assert torch.equal(after, call(module, timestep=timestep)), name
        assert not torch.equal(after, before), name
        before = after


def test_what_comes_back_is_recognised() -> None:
    module = rich()
    subject = compiled(module)
    first = call(subject)
    for _ in range(3):
        module._active = ["b"]
        assert not torch.equal(call(subject), first)
        module._active = ["a"]
        assert torch.equal(call(subject), first)
    assert subject.cache_stats.captures == 2


def test_equal_objects_are_no_change() -> None:
    """A processor for each generation, equal to the one before, compiles nothing."""
    module = rich()
    subject = compiled(module)
    first = call(subject)
    for _ in range(12):
        module.processor = Processor()
        module._table = [[1.0, 0.5], [0.25]]
        module.optional, kept = None, module.optional
        module.optional = kept
        assert torch.equal(call(subject), first)
    assert subject.cache_stats.captures == 1


def test_freed_addresses_are_no_identities() -> None:
    """A layer that is replaced by one at the same address is another layer."""
    module = rich()
    subject = compiled(module)
    call(subject)
    for seed in range(12):
        torch.manual_seed(seed)
        module.proj = None  # type: ignore[assignment]
        gc.collect()
        module.proj = nn.Linear(8, 8).requires_grad_(False).eval()
        assert torch.equal(call(subject), call(module))
    # Other weights of the same types are only other weights.
    assert subject.cache_stats.captures == 1


def test_weights_of_a_replaced_layer_are_freed() -> None:
    module = rich()
    subject = compiled(module)
    call(subject)
    gone = weakref.ref(module.proj.weight)
    module.proj = nn.Linear(8, 8).requires_grad_(False)
    call(subject)
    module.blocks = module.blocks[:1]
    call(subject)
    gc.collect()
    assert gone() is None


def test_precision_changes_in_mid_generation() -> None:
    module = rich()
    subject = compiled(module, graphcache.fora(2))
    call(subject, timestep=900.0)
    call(subject, timestep=800.0)
    subject.to(torch.float64)
    inputs = {
        name: value.double() for name, value in tiny_inputs(timestep=700.0).items()
    }
    with torch.no_grad():
        assert torch.equal(subject(**inputs)[0], module(**inputs)[0])


def test_a_config_that_is_changed() -> None:
    module: Any = make(ZOO["cogvideox"])
    subject: Any = compiled(module)
    inputs = first_inputs(ZOO["cogvideox"])
    for config in ({}, {"use_rotary_positional_embeddings": True}):
        module.register_to_config(**config)
        with torch.no_grad():
            assert torch.equal(
                subject(**inputs, return_dict=False)[0],
                module(**inputs, return_dict=False)[0],
            )
    assert subject.cache_stats.captures == 2


@pytest.mark.slow
def test_strides_of_a_weight_are_known_to_inductor() -> None:
    module = rich()
    subject = compiled(module, backend="inductor", progress=False)
    for change in (lambda m: None, _channels_last, _swap_data):
        change(module)
        ours, theirs = call(subject), call(module)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert subject.cache_stats.captures == 2


@pytest.fixture
def patched() -> Iterator[Callable[[Any, str, Any], None]]:
    """Sets attributes of classes and files, and takes them back."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setattr


def _twice(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    timestep: Tensor,
    return_dict: bool = False,
) -> Any:
    """A forward that takes the place of a class's own."""
    own = TinyTransformer.forward
    output = own(self, hidden_states, encoder_hidden_states, timestep)
    return (hidden_states * 2 + output[0],)


PATCHES: dict[str, tuple[Any, str, Any]] = {
    "forward of a class": (Rich, "forward", _twice),
    "method of a processor": (Processor, "_scaled", lambda self, hidden: hidden * 9),
    "attribute of a class": (Processor, "flavour", 3.0),
    "number of a file": (None, "BOOST", 2.0),
    "function of a file": (None, "scaled", lambda hidden, factor: hidden - factor),
    "function of another file": (helpers, "randn", lambda _, n: torch.zeros(3, n)),
    "function of torch": (functional, "relu", torch.sigmoid),
}


@pytest.mark.parametrize("name", PATCHES)
def test_replaced_code_is_seen(
    name: str, patched: Callable[[Any, str, Any], None]
) -> None:
    module = rich()
    subject = compiled(module)
    before = call(subject)
    owner, attribute, value = PATCHES[name]
    patched(owner or globals_of_this_file(), attribute, value)
    assert torch.equal(call(subject), call(module))
    assert not torch.equal(call(subject), before)


def globals_of_this_file() -> Any:
    import tests.runtime.test_state as here

    return here


def test_a_default_of_torch_is_part_of_the_state() -> None:
    module = rich()
    before, polls = state_of(module)
    torch.set_default_dtype(torch.float64)
    try:
        assert polls.changed()
        assert not state_of(module)[0].same(before)
    finally:
        torch.set_default_dtype(torch.float32)
    assert state_of(module)[0].same(before)


def test_nothing_is_looked_at_twice_for_nothing() -> None:
    """Steps of an unchanged module find their loop without a walk."""
    module = rich()
    subject = compiled(module, graphcache.fora(2))
    run_loop(subject, 4)
    polls = subject._graphcache_runner._polls
    run_loop(subject, 8)
    assert subject._graphcache_runner._polls is polls
    assert not polls.changed()


def test_a_refused_change_leaves_the_module_and_the_loops() -> None:
    module = rich()
    subject = compiled(module)
    first = call(subject)
    handle = module.blocks[0].register_forward_hook(lambda *_: None)
    for _ in range(2):
        with pytest.raises(CaptureError, match=r"blocks\.0 has a torch forward hook"):
            call(subject)
    handle.remove()
    assert torch.equal(call(subject), first)
    assert subject.cache_stats.captures == 1


def test_states_are_plain_values() -> None:
    """Equal modules have one state; a copy differs in what counts by identity only."""
    module = rich()
    one, _ = state_of(module)
    two, _ = state_of(module)
    assert one.same(two)
    module._scales = OrderedDict(module._scales)  # type: ignore[assignment]
    three, _ = state_of(module)
    assert not one.same(three)


def test_a_cycle_of_objects_ends() -> None:
    module = rich()
    module.options.owner = module
    module.processor.friend = module.processor
    subject = compiled(module)
    first = call(subject)
    module.processor.scale = 2.0
    assert not torch.equal(call(subject), first)


def test_masks_keep_their_place_through_a_change() -> None:
    module = rich()
    subject = compiled(module, graphcache.fora(2))
    assert same(run_loop(subject, 6), run_loop(compiled(rich(), graphcache.fora(2)), 6))
