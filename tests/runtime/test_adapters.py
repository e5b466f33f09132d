"""LoRA adapters of PEFT: every verb is seen at the next call, at both doors.

The oracle is the module itself, called eager in the same state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from tests.zoo import ZOO, first_inputs, make

peft = pytest.importorskip("peft")

MODELS = ("flux", "wan", "cogvideox")


def behind_dynamo(module: nn.Module, config: object) -> Any:
    """The other door, told that numbers such as an adapter's scale are compiled in."""
    torch._dynamo.reset()
    options = {"config": config, "backend": "eager", "progress": False}
    return torch.compile(
        module, backend="graphcache", fullgraph=True, dynamic=False, options=options
    )


DOORS: dict[str, Callable[[nn.Module, object], Any]] = {
    "compile": lambda module, config: graphcache.compile(
        module, config, backend="eager"
    ),
    "dynamo": behind_dynamo,
}
VERBS: dict[str, Callable[[Any], Any]] = {
    "another adapter": lambda m: m.set_adapters("b"),
    "both": lambda m: m.set_adapters(["a", "b"], [1.0, 1.0]),
    "both, weighted": lambda m: m.set_adapters(["a", "b"], [0.5, 2.0]),
    "none": lambda m: m.disable_lora(),
    "again": lambda m: m.enable_lora(),
    "set_adapter": lambda m: m.set_adapter("a"),
    "disable_adapters": lambda m: m.disable_adapters(),
    "enable_adapters": lambda m: m.enable_adapters(),
    "fused": lambda m: m.fuse_lora(lora_scale=0.5),
    "unfused": lambda m: m.unfuse_lora(),
    "deleted": lambda m: m.delete_adapters("b"),
    "unloaded": lambda m: m.unload_lora(),
}


def adapted(name: str) -> Any:
    """A tiny model with two adapters, the first of which is active."""
    module: Any = make(ZOO[name])
    for seed, adapter in enumerate(("a", "b")):
        add(module, adapter, seed)
    module.set_adapters("a")
    return module


def add(module: Any, adapter: str, seed: int) -> None:
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False
    )
    torch.manual_seed(seed)
    module.add_adapter(config, adapter_name=adapter)
    module.requires_grad_(False).eval()


def call(module: Any, name: str, timestep: float = 500.0) -> Tensor:
    inputs = first_inputs(ZOO[name], timestep=timestep)
    with torch.no_grad():
        return module(**inputs, return_dict=False)[0].clone()


@pytest.mark.large
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", MODELS)
def test_every_verb_is_seen(name: str, door: str) -> None:
    with torch._dynamo.config.patch(recompile_limit=32):
        check(name, door, VERBS)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", MODELS)
def test_the_first_verbs_are_seen(name: str, door: str) -> None:
    """The other adapter on Flux, both on Wan, none on CogVideoX."""
    verb = list(VERBS)[(0, 1, 3)[MODELS.index(name)]]
    check(name, door, {verb: VERBS[verb]})


def check(name: str, door: str, verbs: dict[str, Callable[[Any], Any]]) -> None:
    module = adapted(name)
    subject = DOORS[door](module, graphcache.never_reuse())
    assert torch.equal(call(subject, name), call(module, name))
    for verb, act in verbs.items():
        act(module)
        assert torch.equal(call(subject, name), call(module, name)), verb


def test_switching_back_compiles_nothing() -> None:
    module = adapted("flux")
    subject: Any = graphcache.compile(module, graphcache.fora(2), backend="eager")
    outputs = {}
    for adapter in ("a", "b", "a", "b"):
        module.set_adapters(adapter)
        module._reset_stateful_cache()
        output = call(subject, "flux")
        assert torch.equal(output, outputs.setdefault(adapter, output))
    assert subject.cache_stats.captures == 2


def test_a_switch_in_mid_generation_computes_once() -> None:
    """The step after it computes, by the new weights, and the mask keeps its place."""
    module = adapted("flux")
    subject: Any = graphcache.compile(module, graphcache.fora(3), backend="eager")
    for step in range(9):
        if step == 4:
            module.set_adapters("b")
        output = call(subject, "flux", 900.0 - 100 * step)
        if step in (0, 3, 4, 6):
            assert torch.equal(output, call(module, "flux", 900.0 - 100 * step)), step
    computed = [record.computed["fora"] for record in subject.cache_stats.steps]
    assert computed == [step in (0, 3, 4, 6) for step in range(9)]


def test_other_weights_of_known_shapes_are_only_other_weights() -> None:
    module = adapted("flux")
    subject: Any = graphcache.compile(module, graphcache.never_reuse(), backend="eager")
    call(subject, "flux")
    for seed in (7, 8):
        module.delete_adapters(["a", "b"])
        add(module, "a", seed)
        add(module, "b", seed + 10)
        module.set_adapters("a")
        assert torch.equal(call(subject, "flux"), call(module, "flux"))
    assert subject.cache_stats.captures == 1
