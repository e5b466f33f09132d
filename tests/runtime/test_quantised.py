"""Whatever is done to a quantised weight is seen at the next call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphcache
from graphcache import never_reuse
from tests import quantised
from tests.quantised import (
    BITSANDBYTES,
    GGUF,
    QUANTO,
    TORCHAO,
    Make,
    generate,
    gguf,
    same,
)


def quantised_later(module: nn.Module) -> None:
    """By torchao, in place."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig(version=2), filter_fn=quantised.is_quantised)


def quantised_otherwise(module: Any) -> None:
    """The weight of one layer in another scheme."""
    other: Any = TORCHAO["int8-dynamic"]()
    module.blocks[0].ff[0].weight = other.blocks[0].ff[0].weight


def halved_scales(module: Any) -> None:
    """The scales of one weight replaced by others, while the weight stays."""
    weight = module.blocks[0].ff[0].weight
    weight.scale = weight.scale / 2


def written_scales(module: Any) -> None:
    """The scales of one weight written to."""
    module.blocks[0].ff[0].weight.scale.mul_(0.5)


def other_scheme(module: Any) -> None:
    """How a weight's activations are quantised, while its tensors stay."""
    module.blocks[0].ff[0].weight.act_quant_kwargs = None


def written_bytes(module: Any) -> None:
    """The bytes of one weight written to."""
    bytes_of = module.blocks[0].ff[0].weight.as_tensor()
    bytes_of.copy_(bytes_of.flip(0))


def other_bytes(module: Any) -> None:
    """The bytes of one weight replaced by others, while the parameter stays."""
    weight = module.blocks[0].ff[0].weight
    weight.data = weight.as_tensor().flip(0)


def other_blocks(module: Any) -> None:
    """One weight in other blocks."""
    other: Any = gguf("Q4_0", seed=1)()
    module.blocks[0].ff[0].weight = other.blocks[0].ff[0].weight


def other_state(module: Any) -> None:
    """The scales of packed numbers replaced by others."""
    state = module.blocks[0].ff[0].weight.quant_state
    state.absmax = 2 * state.absmax


def other_units(module: Any) -> None:
    """The scales of quanto's replaced by others."""
    weight = module.blocks[0].ff[0].weight
    weight._scale = 2 * weight._scale


def other_rows(module: Any) -> None:
    """The rows of int8 of one layer written to."""
    weight = module.blocks[0].ff[0].weight
    weight.data.copy_(weight.data.flip(0))


CHANGES: list[tuple[Make, Callable[[Any], None], str]] = [
    (quantised.plain, quantised_later, "torchao"),
    (TORCHAO["int8-weights"], quantised_otherwise, "torchao"),
    (TORCHAO["int8-weights"], halved_scales, "torchao"),
    (TORCHAO["int8-weights"], written_scales, "torchao"),
    (TORCHAO["int8-dynamic"], other_scheme, "torchao"),
    (GGUF["Q8_0"], written_bytes, "gguf"),
    (GGUF["Q8_0"], other_bytes, "gguf"),
    (GGUF["Q8_0"], other_blocks, "gguf"),
    (BITSANDBYTES["nf4"], other_state, "bitsandbytes"),
    (BITSANDBYTES["int8"], other_rows, "bitsandbytes"),
    (QUANTO["qint8"], other_units, "optimum.quanto"),
]


@pytest.mark.parametrize(("make", "change", "library"), CHANGES)
def test_a_change_is_seen(
    make: Make, change: Callable[[Any], None], library: str
) -> None:
    pytest.importorskip(library)
    compiled = graphcache.compile(make(), never_reuse(), backend="eager")
    module = make()
    assert same(before := generate(compiled), generate(module))
    change(compiled)
    change(module)
    after = generate(compiled)
    assert same(after, generate(module))
    assert not same(after, before)


def test_other_weights_of_a_structure_compile_nothing() -> None:
    compiled: Any = graphcache.compile(GGUF["Q8_0"](), never_reuse(), backend="eager")
    generate(compiled)
    other: Any = gguf("Q8_0", seed=1)()
    for path, part in other.named_modules():
        if isinstance(part, nn.Linear) and path.startswith("blocks."):
            compiled.get_submodule(path).weight = part.weight
            compiled.get_submodule(path).bias = part.bias
    compiled.time.load_state_dict(other.time.state_dict())
    assert same(generate(compiled), generate(other))
    assert compiled.cache_stats.captures == 1


def test_a_change_in_mid_generation_is_seen() -> None:
    """As a callback at the end of a step would make one."""
    compiled = graphcache.compile(quantised.plain(), never_reuse(), backend="eager")
    module = quantised.plain()
    given = quantised.inputs(module)
    for change in (quantised_later, halved_scales, quantised_otherwise):
        change(compiled)
        change(module)
        given["timestep"] = given["timestep"] - 100.0
        with torch.no_grad():
            (ours,), (theirs,) = compiled(**given), module(**given)
        assert torch.equal(ours, theirs)
