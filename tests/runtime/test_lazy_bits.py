"""Negations and conjugations that torch notes on a tensor and does not carry out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import never_reuse
from graphcache.signature import CallSignature, is_lazy, resolved
from tests.doors import behind_dynamo
from tests.models import TinyAttention


class Turning(nn.Module):
    """Attention, turned by complex numbers that are weights and arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = TinyAttention()
        self.register_buffer("turn", torch.randn(4, dtype=torch.complex64))

    def forward(self, x: Tensor, timestep: Tensor, angle: Tensor) -> Tensor:
        """f32[1, 3, 8], f32[1], c64[4] to f32[1, 3, 8]."""
        hidden = self.attn(x).unflatten(-1, (4, 2)).contiguous()
        turned = torch.view_as_complex(hidden) * self.turn * angle
        return torch.view_as_real(turned).flatten(-2) + timestep


def built() -> Turning:
    torch.manual_seed(0)
    return Turning().eval().requires_grad_(False)


def lazy_weight(module: Turning) -> Turning:
    weight = torch._neg_view(module.attn.to_q.weight.detach())
    module.attn.to_q.weight = nn.Parameter(weight, requires_grad=False)
    return module


def lazy_buffer(module: Turning) -> Turning:
    module.turn = module.turn.conj()
    return module


def same(module: Turning) -> Turning:
    return module


def inputs() -> list[dict[str, Any]]:
    """Calls with and without what is noted, the noted ones first and last."""
    x, angle = torch.randn(1, 3, 8), torch.randn(4, dtype=torch.complex64)
    time = torch.tensor([500.0])
    pairs = [
        (torch._neg_view(x), angle.conj()),
        (x, angle),
        (x, angle.conj()),
        (torch._neg_view(x), angle),
    ]
    return [{"x": a, "timestep": time, "angle": b} for a, b in pairs]


@pytest.mark.parametrize("change", [same, lazy_weight, lazy_buffer])
@pytest.mark.parametrize("direct", [True, False])
def test_equals_the_module(change: Callable[[Turning], Turning], direct: bool) -> None:
    module, reference = change(built()), change(built())
    subject = (
        graphcache.compile(module, never_reuse(), backend="eager")
        if direct
        else behind_dynamo(module, never_reuse())
    )
    with torch.no_grad():
        for given in inputs():
            assert torch.equal(subject(**given), reference(**given))
    assert direct is False or subject.cache_stats.captures == 1
    # The weights are the module's own.
    assert is_lazy(module.attn.to_q.weight) is (change is lazy_weight)
    assert is_lazy(module.turn) is (change is lazy_buffer)


@pytest.mark.slow
@pytest.mark.parametrize("direct", [True, False])
def test_code_of_inductor_is_given_what_it_reads(direct: bool) -> None:
    module = lazy_buffer(lazy_weight(built()))
    reference = copy.deepcopy(module)
    subject = (
        graphcache.compile(module, never_reuse(), backend="inductor", progress=False)
        if direct
        else behind_dynamo(module, never_reuse(), "inductor")
    )
    with torch.no_grad():
        for given in inputs():
            torch.testing.assert_close(subject(**given), reference(**given))


def test_resolving_is_part_of_binding() -> None:
    module, given = built(), inputs()[0]
    signature = CallSignature(module.forward)
    call = signature.bind((), given)
    assert not any(map(is_lazy, call.tensors))
    assert torch.equal(call.tensors[0], given["x"])
    kept = signature.bind((), given, resolve=False)
    assert kept.tensors[0] is given["x"]
    plain = torch.ones(2)
    assert resolved(plain) is plain
