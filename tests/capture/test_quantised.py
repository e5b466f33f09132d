"""Quantised modules compile, and compute what they compute uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import CaptureError, first_block_cache, fora, never_reuse
from graphcache.capture.weights import quantised_weights
from graphcache.program import InputKind
from tests import quantised
from tests.doors import both
from tests.quantised import (
    BITSANDBYTES,
    GGUF,
    QUANTO,
    TORCHAO,
    Make,
    bitsandbytes8,
    generate,
    inputs,
    same,
)

ALWAYS = {**TORCHAO, **GGUF}
IF_INSTALLED = {**BITSANDBYTES, **QUANTO}
_LIBRARIES = {
    **dict.fromkeys(BITSANDBYTES, "bitsandbytes"),
    **dict.fromkeys(QUANTO, "optimum.quanto"),
}
SCHEMES = {**ALWAYS, **IF_INSTALLED}


def made(name: str) -> Make:
    """How the module of a scheme is made; skips if its library is not installed."""
    if name in _LIBRARIES:
        pytest.importorskip(_LIBRARIES[name])
    return SCHEMES[name]


def called(make: Make) -> nn.Module:
    """A module after its first call, at which some layers prepare themselves."""
    module = make()
    with torch.no_grad():
        module(**inputs(module))
    return module


@pytest.mark.parametrize("name", SCHEMES)
def test_is_the_module_bit_for_bit(name: str) -> None:
    make = made(name)
    compiled = graphcache.compile(make(), fora(1), backend="eager")
    assert same(generate(compiled), generate(make()))
    assert compiled.cache_stats.regions == {"fora": ("blocks.0.attn", "blocks.0.ff")}


@pytest.mark.parametrize("name", ["int8-dynamic", "Q8_0"])
def test_is_the_module_by_the_reference(name: str) -> None:
    make = made(name)
    compiled = graphcache.compile(make(), never_reuse(), backend="reference")
    assert same(generate(compiled), generate(make()))


@pytest.mark.parametrize("name", ["int8-dynamic", "Q8_0", "nf4", "int8", "qint8"])
def test_both_doors_are_the_same(name: str) -> None:
    make = made(name)
    both(lambda: called(make), lambda: fora(2), generate)


class Held(nn.Module):
    """Holds the output of a layer every second call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """The layer's output, or the last one."""
        if self.calls % 2 == 0:
            self.held = self.layer(hidden)
        self.calls += 1
        return self.held


def by_hand(make: Make) -> nn.Module:
    """FORA with an interval of two, uncompiled."""
    module: Any = make()
    for block in module.blocks:
        block.attn, block.ff = Held(block.attn), Held(block.ff)
    return module


@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        ("int8-weights", "specialize"),
        ("int8-dynamic", "conditional"),
        ("Q4_0", "conditional"),
        ("Q8_0", "specialize"),
        ("nf4", "conditional"),
    ],
)
def test_what_is_reused_is_what_was_held(name: str, lowering: str) -> None:
    make = made(name)
    compiled = graphcache.compile(
        make(), fora(2), backend="eager", lowering=lowering, progress=False
    )
    assert same(generate(compiled), generate(by_hand(make)))
    assert compiled.cache_stats.reused == {"fora": 2}


@pytest.mark.parametrize(
    ("name", "lowering"),
    [("int8-dynamic", "split"), ("Q8_0", "split"), ("Q8_0", "conditional")],
)
def test_decisions_of_the_graph(
    name: str, lowering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = quantised.plain
    monkeypatch.setattr(
        quantised, "plain", lambda *a, **k: deep(*a, **{**k, "depth": 2})
    )
    runs = [
        graphcache.compile(
            made(name)(), first_block_cache(1.0), backend=backend, **options
        )
        for backend, options in (("eager", {"lowering": lowering}), ("reference", {}))
    ]
    assert same(*map(generate, runs))
    assert [run.cache_stats.reused for run in runs] == [{"first_block": 2}] * 2


@pytest.mark.parametrize("name", ["int8-dynamic", "Q8_0", "int8-outliers", "qint4"])
def test_a_reused_region_takes_none_of_its_weights(name: str) -> None:
    module = called(made(name))
    program = graphcache.trace(module, fora(2), **inputs(module))
    read = [
        {entry.target for entry in variant.inputs_of(InputKind.WEIGHT)}
        for variant in graphcache.variants(program, fora(2))
    ]
    inner = {
        target for weight in quantised_weights(module) for target in weight.targets
    }
    assert inner & read[0]
    assert not any(target.startswith("blocks.") for target in read[1])


def test_weights_come_before_the_arguments() -> None:
    module = TORCHAO["int8-weights"]()
    kinds = [
        entry.kind
        for entry in graphcache.trace(module, fora(2), **inputs(module)).inputs
    ]
    count = kinds.count(InputKind.WEIGHT)
    assert kinds[:count] == [InputKind.WEIGHT] * count


class Unknown(Tensor):
    """A kind of weight that nobody knows."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Twice the weight."""
        with torch._C.DisableTorchFunctionSubclass():
            plain = [
                2 * a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args
            ]
            return func(*plain, **(kwargs or {}))


def unknown() -> nn.Module:
    """A module with a weight of an unknown kind."""
    module: Any = quantised.plain()
    layer = module.blocks[0].attn.to_q
    layer._parameters["weight"] = layer.weight.data.as_subclass(Unknown)
    return module


class Reading(quantised.Transformer):
    """Asks the host for the latents."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, **kwargs: Any) -> Any:
        """As its parent, if the first latent is positive."""
        (given,) = super().forward(hidden_states, timestep)
        return (given if hidden_states.max().item() > 0 else -given,)


def reading() -> nn.Module:
    """A quantised module that cannot be traced."""
    module = GGUF["Q8_0"]()
    module.__class__ = Reading
    return module


def _contents(module: nn.Module) -> list[tuple[str, int]]:
    return [
        (f"{path}.{name}", id(value))
        for path, part in module.named_modules()
        for group in (part._parameters, part._buffers)
        for name, value in group.items()
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unknown, r"blocks\.0\.attn\.to_q\.weight is a .*Unknown.* quantise"),
        (reading, r"Reading cannot be captured"),
    ],
)
def test_a_refusal_leaves_the_module_as_it_was(
    make: Callable[[], nn.Module], message: str
) -> None:
    module = make()
    before = _contents(module)
    compiled = graphcache.compile(module, never_reuse(), backend="eager")
    with pytest.raises(CaptureError, match="(?i)" + message):
        generate(compiled)
    assert _contents(module) == before


def test_a_layer_that_quantises_at_each_call_is_refused() -> None:
    pytest.importorskip("bitsandbytes")
    module = bitsandbytes8(0.0, has_fp16_weights=True)()
    compiled = graphcache.compile(module, never_reuse(), backend="eager")
    with pytest.raises(CaptureError, match=r"to_q\.weight, a Int8Params, .*has_fp16"):
        generate(compiled)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("int8-outliers", "llm_int8_threshold=0.0"), ("nf4", "call the module once")],
)
def test_what_dynamo_cannot_trace_says_what_to_do(name: str, advice: str) -> None:
    make = made(name)
    module: Any = make()
    # Whether this CPU has the instructions or not.
    module.blocks[0].attn.to_q.support_avx512bf16_for_cpu = True
    assert quantised_weights(module)
    with pytest.raises(CaptureError, match=advice):
        quantised_weights(module, by_dynamo=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8-weights", "Q8_0"])
def test_inductor_is_close(name: str) -> None:
    compiled = graphcache.compile(SCHEMES[name](), fora(2), progress=False)
    want = generate(by_hand(SCHEMES[name]))
    for ours, theirs in zip(generate(compiled), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)
