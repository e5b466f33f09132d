"""The attention backend that a module has is the one that its graph has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import (
    _AttentionBackendRegistry,
    attention_backend,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import graphcache
from graphcache.capture.kernels import PinnedKernels
from tests.zoo import ZOO, first_inputs, make

FUSED = "scaled_dot_product_attention"


@pytest.fixture(autouse=True)
def _default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers makes the backend of one module that of the process as well."""
    active = _AttentionBackendRegistry._active_backend
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", active)


def call(module: Any, name: str) -> Tensor:
    with torch.no_grad():
        return module(**first_inputs(ZOO[name]), return_dict=False)[0].clone()


def compiled(module: Any) -> Any:
    return graphcache.compile(module, graphcache.never_reuse(), backend="eager")


def fused(subject: Any) -> bool:
    """Whether the latest graph leaves the choice of a kernel to torch."""
    return FUSED in str(subject._graphcache_runner.loops[-1].source.program)


@pytest.mark.parametrize("name", ["flux"])
def test_the_backend_is_that_of_the_module(name: str) -> None:
    module = make(ZOO[name])
    module.set_attention_backend("_native_math")
    subject = compiled(module)
    assert torch.equal(call(subject, name), call(module, name))
    assert not fused(subject)
    # Afterwards, too.
    module.set_attention_backend("native")
    assert torch.equal(call(subject, name), call(module, name))
    assert fused(subject)


def test_a_backend_for_a_while() -> None:
    """diffusers' own context manager, which sets an attribute of a class."""
    module = make(ZOO["flux"])
    subject = compiled(module)
    assert torch.equal(call(subject, "flux"), call(module, "flux"))
    with attention_backend("_native_math"):
        assert torch.equal(call(subject, "flux"), call(module, "flux"))
        assert not fused(subject)
    assert torch.equal(call(subject, "flux"), call(module, "flux"))
    assert subject.cache_stats.captures == 2


class Pinned(nn.Module):
    """An attention whose options are those of the case."""

    def __init__(self, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        self.dtype = dtype
        self.options = options

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """f32[1, 4, 6, 8] to the same."""
        hidden = hidden_states.to(self.dtype)
        heads = 2 if self.options.get("enable_gqa") else 4
        with sdpa_kernel(SDPBackend.MATH):
            return functional.scaled_dot_product_attention(
                hidden, hidden[:, :heads] * 2, hidden[:, :heads] + 1, **self.options
            )


MASK = torch.arange(36).view(6, 6) % 5 > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": -0.3},
        {"attn_mask": MASK},
        {"attn_mask": MASK & (torch.arange(6) > 0)[:, None]},
        {"enable_gqa": True},
    ],
    ids=["plain", "causal", "negative scale", "mask", "empty row", "grouped"],
)
def test_the_mathematical_form_is_torchs_own(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    hidden = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    inputs = {"hidden_states": hidden, "timestep": torch.tensor([5.0])}
    module = Pinned(dtype, **options).eval()
    with torch.no_grad(), PinnedKernels():
        assert torch.equal(module(**inputs), _eager(module, inputs))


def _eager(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch._C.DisableTorchFunction():
        output: Tensor = module(**inputs)
    return output


def test_attention_by_hand_is_found() -> None:
    """A policy for attention finds what the pinned form consists of."""
    module = make(ZOO["flux"])
    module.set_attention_backend("_native_math")
    subject: Any = graphcache.compile(module, graphcache.fora(2), backend="eager")
    call(subject, "flux")
    plain: Any = graphcache.compile(
        make(ZOO["flux"]), graphcache.fora(2), backend="eager"
    )
    call(plain, "flux")
    assert subject.cache_stats.regions == plain.cache_stats.regions


def test_what_is_set_outside_is_seen() -> None:
    module = make(ZOO["flux"])
    subject = compiled(module)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.equal(call(subject, "flux"), call(module, "flux"))
        assert not fused(subject)
    assert torch.equal(call(subject, "flux"), call(module, "flux"))
    assert fused(subject)
