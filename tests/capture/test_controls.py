"""ControlNet's residuals and an IP-Adapter's images, as pipelines give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import never_reuse
from tests.doors import behind_dynamo
from tests.zoo import ZOO, first_inputs, make


def controls(name: str, module: Any, seed: int) -> dict[str, Any]:
    """Residuals for the first block and every later one."""
    generator = torch.Generator().manual_seed(seed)
    width, tokens = module.inner_dim, 16
    batch = ZOO[name].latents[0]
    samples = [torch.randn(batch, tokens, width, generator=generator) for _ in "ab"]
    if name == "sd3":
        return {"block_controlnet_hidden_states": samples}
    return {"controlnet_block_samples": samples}


LARGE = [pytest.param(name, marks=pytest.mark.large) for name in ("flux", "qwenimage")]


@pytest.mark.parametrize("name", ["sd3", *LARGE])
def test_residuals_of_a_controlnet_are_arguments(name: str) -> None:
    module, reference = make(ZOO[name]), make(ZOO[name])
    subject = graphcache.compile(module, never_reuse(), backend="eager")
    plain = {**first_inputs(ZOO[name]), "return_dict": False}
    calls = [plain, *({**plain, **controls(name, module, seed)} for seed in (1, 2))]
    with torch.no_grad():
        outputs = [subject(**given)[0] for given in calls]
        wanted = [reference(**given)[0] for given in calls]
    assert all(map(torch.equal, outputs, wanted))
    assert not torch.equal(wanted[1], wanted[0])
    assert not torch.equal(wanted[1], wanted[2])
    # With a control and without it; another control is another value of an argument.
    assert subject.cache_stats.captures == 2


def adapted() -> Any:
    """Flux with an IP-Adapter, loaded as a pipeline loads it."""
    module: Any = make(ZOO["flux"])
    torch.manual_seed(2)
    width, joint = module.inner_dim, module.config.joint_attention_dim
    layers: dict[str, Tensor] = {}
    for index in range(len(module.transformer_blocks)):
        for name in ("to_k_ip", "to_v_ip"):
            layers[f"{index}.{name}.weight"] = torch.randn(width, joint)
            layers[f"{index}.{name}.bias"] = torch.randn(width)
    image = {
        "proj.weight": torch.randn(4 * joint, 6),
        "proj.bias": torch.randn(4 * joint),
        "norm.weight": torch.randn(joint),
        "norm.bias": torch.randn(joint),
    }
    state = {"image_proj": image, "ip_adapter": layers}
    module._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    return module.eval().requires_grad_(False)


def with_image(seed: int) -> dict[str, Any]:
    image = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(seed))
    given = {**first_inputs(ZOO["flux"]), "return_dict": False}
    return {**given, "joint_attention_kwargs": {"ip_adapter_image_embeds": [image]}}


def test_images_of_an_ip_adapter_are_arguments() -> None:
    module, reference = adapted(), adapted()
    subject = graphcache.compile(module, never_reuse(), backend="eager")
    with torch.no_grad(), module.cache_context("cond"):
        outputs = [subject(**with_image(seed))[0] for seed in (1, 2)]
        wanted = [reference(**with_image(seed))[0] for seed in (1, 2)]
        given = with_image(1)
        subject(**given)
    assert all(map(torch.equal, outputs, wanted))
    assert not torch.equal(*wanted)
    assert subject.cache_stats.captures == 1
    assert list(given["joint_attention_kwargs"]) == ["ip_adapter_image_embeds"]


def test_images_of_an_ip_adapter_behind_torch_compile() -> None:
    subject: nn.Module = behind_dynamo(adapted(), never_reuse())
    with torch.no_grad():
        got, want = subject(**with_image(1))[0], adapted()(**with_image(1))[0]
    assert torch.equal(got, want)
