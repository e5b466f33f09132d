"""Transformers of diffusers that ask the host, keep tables or return gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig
from torch import Tensor, nn

import graphcache
from benchmarks.catalogue import entries
from benchmarks.catalogue.entry import build
from graphcache import never_reuse
from tests.capture.running import equal

ENTRIES = {entry.name: entry for entry in entries()}


def inputs(name: str) -> dict[str, Any]:
    return ENTRIES[name].inputs(torch.Generator().manual_seed(1))


def ragged(given: dict[str, Any]) -> dict[str, Any]:
    """A batch of two prompts of different lengths."""

    def doubled(value: Any) -> Any:
        return torch.cat([value, value * 2]) if isinstance(value, Tensor) else value

    batch = {name: doubled(value) for name, value in given.items()}
    masks = [[True] * 6, [True] * 4 + [False] * 2]
    return {**batch, "encoder_attention_mask": torch.tensor(masks)}


def distinct(given: dict[str, Any]) -> dict[str, Any]:
    """Two times that are one object no more."""
    return {**given, "timestep_r": given["timestep"] * 0.5}


def same_object(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "timestep_r": given["timestep"]}


def as_given(given: dict[str, Any]) -> dict[str, Any]:
    return given


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("AceStepTransformer1DModel", [same_object, distinct]),
        ("BriaFibo2Transformer2DModel", [as_given]),
        ("Cosmos3OmniTransformer", [as_given]),
        ("Lumina2Transformer2DModel", [as_given, ragged]),
        ("QwenImage21Transformer2DModel", [as_given]),
    ],
)
def test_equals_the_module_bit_for_bit(
    name: str, calls: list[Callable[[dict[str, Any]], dict[str, Any]]]
) -> None:
    module, reference = build(ENTRIES[name]), build(ENTRIES[name])
    subject = graphcache.compile(module, never_reuse(), backend="eager")
    for change in calls:
        for named in (False, True):
            given = {**change(inputs(name)), "return_dict": named}
            assert equal(outputs(subject, given), outputs(reference, given))
    # What the module keeps of its first call is its own.
    given = {**calls[0](inputs(name)), "return_dict": False}
    assert equal(outputs(module, given), outputs(reference, given))


def outputs(module: nn.Module, given: dict[str, Any]) -> Any:
    with torch.no_grad():
        output = module(**given)
    return tuple(output.values()) if isinstance(output, dict) else output


def reference_pass(seed: int) -> dict[str, Any]:
    """The pass over the reference that fills the cache of keys and values."""
    rng = torch.Generator().manual_seed(seed)
    given = inputs("WanAnimate2Transformer3DModel")
    return {
        **{k: v for k, v in given.items() if k.startswith("encoder")},
        "hidden_states": [torch.randn(4, 2, 4, 4, generator=rng)],
        "timestep": torch.tensor([1.0]),
        "condition_latents": [torch.randn(8, 2, 4, 4, generator=rng)],
        "kv_cache": type(given["kv_cache"])(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
        "return_dict": False,
    }


def test_keys_and_values_are_put_into_the_cache_that_is_given() -> None:
    entry = ENTRIES["WanAnimate2Transformer3DModel"]
    subject = graphcache.compile(build(entry), never_reuse(), backend="eager")
    reference = build(entry)
    for seed in (1, 2):
        left, right = reference_pass(seed), reference_pass(seed)
        assert equal(outputs(subject, left), outputs(reference, right))
        layers = (given["kv_cache"].layer_caches for given in (left, right))
        for ours, theirs in zip(*layers, strict=True):
            assert equal(vars(ours), vars(theirs))
            assert ours.key is not None
    assert subject.cache_stats.captures == 1


def test_self_attention_that_is_built_as_cross_is_broadcast() -> None:
    entry = ENTRIES["OmniGenTransformer2DModel"]
    config = PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2)
    program = graphcache.trace(build(entry), config, **inputs(entry.name))
    assert len(program.gates) == 2
    assert all(program.region(gate.region).declares_cross for gate in program.gates)
