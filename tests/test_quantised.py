"""What weights are made of, and that a change of it is noticed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import fora
from graphcache.explanation import weight_bytes
from graphcache.quantised import is_plain, parts_of, structure
from tests.quantised import (
    BITSANDBYTES,
    GGUF,
    QUANTO,
    TORCHAO,
    inputs,
    plain,
)


def query(module: Any) -> nn.Module:
    """The layer that makes the queries of the first block."""
    layer: nn.Module = module.blocks[0].attn.to_q
    return layer


class Marked(nn.Parameter):
    """A parameter that computes as any other."""


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2), nn.Parameter(torch.ones(2)), nn.Buffer(torch.ones(2))],
)
def test_plain_tensors(tensor: Tensor) -> None:
    assert is_plain(tensor)


def test_a_subclass_that_changes_nothing_is_plain() -> None:
    assert is_plain(Marked(torch.ones(2)))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (TORCHAO["int8-weights"], {"qdata", "scale", "zero_point"}),
        (GGUF["Q8_0"], {"data"}),
    ],
)
def test_parts(make: Any, names: set[str]) -> None:
    layer: Any = query(make())
    assert not is_plain(layer.weight)
    parts = parts_of(layer.weight, layer, "weight")
    assert set(parts) == names
    assert all(type(part) is Tensor for part in parts.values())


def test_parts_of_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    layer: Any = query(BITSANDBYTES["nf4"]())
    parts = parts_of(layer.weight, layer, "weight")
    state = layer.weight.quant_state
    assert parts["quant_state.state2.absmax"] is state.state2.absmax
    assert parts["data"].data_ptr() == layer.weight.data_ptr()


def test_parts_of_a_subclass_in_a_subclass() -> None:
    pytest.importorskip("optimum.quanto")
    layer: Any = query(QUANTO["qint4"]())
    parts = parts_of(layer.weight, layer, "weight")
    assert parts["_data._data"] is layer.weight._data._data


def test_parts_are_the_weights_own_memory() -> None:
    layer: Any = query(GGUF["Q8_0"]())
    parts_of(layer.weight, layer, "weight")["data"].zero_()
    assert not layer.weight.as_tensor().any()


@pytest.mark.parametrize("scheme", ["int8-weights", "int8-dynamic", "int4-packed"])
def test_a_structure_equals_itself_and_no_other(scheme: str) -> None:
    weights = {name: query(make()).weight for name, make in {**TORCHAO, **GGUF}.items()}
    known = {name: structure(weight) for name, weight in weights.items()}
    again = structure(query(TORCHAO[scheme]()).weight)
    equal = [name for name, found in known.items() if found == again]
    assert equal == [scheme]
    assert hash(again) == hash(known[scheme])


def test_a_structure_names_what_the_class_says() -> None:
    weight: Any = query(TORCHAO["int8-dynamic"]()).weight
    before = structure(weight)
    weight.act_quant_kwargs = copy.copy(weight.act_quant_kwargs)
    assert structure(weight) == before
    weight.act_quant_kwargs.reduce_range = not weight.act_quant_kwargs.reduce_range
    assert structure(weight) != before


def test_bytes_are_those_of_the_parts() -> None:
    module: Any = TORCHAO["int8-weights"]()
    found = graphcache.explain(module, fora(2), **inputs(module))
    layers = [
        part for path, part in module.named_modules() if path.startswith("blocks")
    ]
    rows = [part.weight for part in layers if hasattr(part, "weight")]
    packed = [weight.qdata for weight in rows if not is_plain(weight)]
    assert found.weights[torch.int8] >= sum(data.numel() for data in packed)
    whole = graphcache.explain(plain(), fora(2), **inputs(module))
    saved = sum(3 * data.numel() for data in packed)
    # What is added are the scales and the zero points, one of each a row.
    added = sum(data.shape[0] * 5 for data in packed)
    count = sum(whole.weights.values())
    assert count - saved <= sum(found.weights.values()) <= count - saved + added
    assert f"weights: {sum(found.weights.values())} bytes" in str(found)
    assert weight_bytes(found.program) == found.weights
