"""Hooks inside a module: held by the graph, run uncompiled, or refused with why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import (
    LayerSkipConfig,
    SmoothedEnergyGuidanceConfig,
    apply_group_offloading,
    apply_layer_skip,
    apply_layerwise_casting,
)
from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.hooks.smoothed_energy_guidance_utils import (
    _apply_smoothed_energy_guidance_hook,
)
from torch import Tensor, nn

import graphcache
from graphcache import CaptureError
from tests.zoo import ZOO, first_inputs, make


def call(module: Any, name: str, timestep: float = 500.0) -> Tensor:
    with torch.no_grad():
        inputs = first_inputs(ZOO[name], timestep=timestep)
        return module(**inputs, return_dict=False)[0].clone()


def compiled(module: nn.Module, policy: Any = None) -> Any:
    return graphcache.compile(
        module, policy or graphcache.never_reuse(), backend="eager"
    )


def cast(module: nn.Module, storage: torch.dtype) -> nn.Module:
    apply_layerwise_casting(module, storage_dtype=storage, compute_dtype=torch.float32)
    return module


@pytest.mark.parametrize(
    ("name", "storage"),
    [("cogvideox", torch.bfloat16), ("flux", torch.float8_e4m3fn)],
)
def test_the_graph_holds_the_casts_of_layers(name: str, storage: torch.dtype) -> None:
    module = cast(make(ZOO[name]), storage)
    before = {n: weight.dtype for n, weight in module.named_parameters()}
    assert storage in before.values()
    subject = compiled(module)
    assert torch.equal(call(subject, name), call(module, name))
    assert {n: weight.dtype for n, weight in module.named_parameters()} == before
    # In the program, a weight is as it is stored.
    (loop,) = subject._graphcache_runner.loops
    assert "to.dtype" in str(loop.source.program) or "_to_copy" in str(
        loop.source.program
    )


def test_layers_that_cast_later_are_seen() -> None:
    module = make(ZOO["cogvideox"])
    subject = compiled(module)
    call(subject, "cogvideox")
    cast(module, torch.bfloat16)
    assert torch.equal(call(subject, "cogvideox"), call(module, "cogvideox"))


def test_a_reused_layer_casts_nothing() -> None:
    module = cast(make(ZOO["cogvideox"]), torch.bfloat16)
    program = graphcache.trace(
        module, graphcache.fora(2), **first_inputs(ZOO["cogvideox"])
    )
    compute, reuse = graphcache.variants(program, graphcache.fora(2))
    assert len(reuse.inputs) < len(compute.inputs)
    assert "attn1.to_q.weight" not in str(reuse)


def _skip(module: nn.Module, hook: str) -> None:
    config = LayerSkipConfig([0], fqn="transformer_blocks")
    _apply_layer_skip_hook(module, config, name=hook)


def _smooth(module: nn.Module, hook: str) -> None:
    config = SmoothedEnergyGuidanceConfig([0], fqn="transformer_blocks")
    _apply_smoothed_energy_guidance_hook(module, config, blur_sigma=1.0, name=hook)


def test_calls_that_a_guider_hooks_run_as_they_are() -> None:
    """Skip-layer guidance: two calls of a step are cached, the third is hooked."""
    module, plain = make(ZOO["cogvideox"]), make(ZOO["cogvideox"])
    subject = compiled(module, graphcache.fora(2))
    alone = compiled(make(ZOO["cogvideox"]), graphcache.fora(2))
    for index, timestep in enumerate((900.0, 800.0, 700.0, 600.0)):
        for stream in ("cond", "uncond"):
            with subject.cache_context(stream), alone.cache_context(stream):
                ours = call(subject, "cogvideox", timestep)
                assert torch.equal(ours, call(alone, "cogvideox", timestep))
        for hooked in (module, plain):
            _skip(hooked, "guider")
        with subject.cache_context("skipped"):
            skipped = call(subject, "cogvideox", timestep)
        assert torch.equal(skipped, call(plain, "cogvideox", timestep))
        assert not torch.equal(skipped, ours)
        for hooked in (module, plain):
            HookRegistry.check_if_exists_or_initialize(hooked).remove_hook(
                "guider", recurse=True
            )
        assert subject.cache_stats.uncompiled == index + 1
    stats = subject.cache_stats
    assert (stats.captures, len(stats.steps)) == (1, 8)
    assert "4 calls uncompiled" in str(stats)


def _offload_groups(module: Any) -> None:
    apply_group_offloading(
        module,
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )


class Unknown(ModelHook):
    """A hook of somebody's own."""


def _unknown(module: Any) -> None:
    part = module.transformer_blocks[0]
    HookRegistry.check_if_exists_or_initialize(part).register_hook(Unknown(), "mine")


def _compile_blocks(module: Any) -> None:
    module.compile_repeated_blocks(backend="eager")


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "group offload": (
        _offload_groups,
        r"offloaded by groups.*enable_model_cpu_offload",
    ),
    "sequential offload": (
        lambda m: cpu_offload(m, torch.device("cpu")),
        r"offloaded by accelerate.*enable_model_cpu_offload",
    ),
    "compiled blocks": (_compile_blocks, r"transformer_blocks\.0 has been compiled"),
    "a guider's": (
        lambda m: apply_layer_skip(m, LayerSkipConfig([0], fqn="transformer_blocks")),
        r"guider's hook.*compile before the guider",
    ),
    "unknown": (_unknown, r"transformer_blocks\.0 has diffusers hooks \(mine\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_hooks_are_refused_with_what_to_do(name: str) -> None:
    module = make(ZOO["flux"])
    hook, message = REFUSED[name]
    hook(module)
    with pytest.raises(CaptureError, match=message):
        compiled(module)


def test_smoothed_energy_runs_as_it_is() -> None:
    module, plain = make(ZOO["sd3"]), make(ZOO["sd3"])
    subject = compiled(module)
    call(subject, "sd3")
    for hooked in (module, plain):
        _smooth(hooked, "guider")
    assert torch.equal(call(subject, "sd3"), call(plain, "sd3"))
    assert subject.cache_stats.uncompiled == 1
