"""Methods of known modules, written so that they can be traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_hidream_image as hidream
from torch import nn

from graphcache import CaptureError
from graphcache.capture.twins import TWINS, twins
from tests.capture.running import captured, equal, run


class Experts(hidream.MOEFeedForwardSwiGLU):
    """A subclass may compute something else."""


def experts(kind: type[nn.Module] = hidream.MOEFeedForwardSwiGLU) -> Any:
    torch.manual_seed(0)
    module = kind(8, 16, num_routed_experts=4, num_activated_experts=2).eval()
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module


def test_hidream_experts_are_the_same_bit_for_bit() -> None:
    module = experts()
    found = captured(module, {"x": torch.randn(2, 5, 8)})
    assert "moe_infer" not in module.__dict__
    assert not found.read
    for seed in range(8):
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
        # Towards one expert, and the others have nothing to do.
        for given in (x, x[:, :1].expand(2, 5, 8).contiguous()):
            with torch.no_grad():
                expected = module(given)
            assert equal(run(found, module, {"x": given}), expected)


def test_a_subclass_has_no_twin() -> None:
    with pytest.raises(CaptureError, match=r"in moe_infer.*depends on x"):
        captured(experts(Experts), {"x": torch.randn(2, 5, 8)})


def test_an_own_method_of_the_instance_stays() -> None:
    module = experts()
    own = module.__dict__["moe_infer"] = lambda *_: None
    with twins(module):
        assert module.moe_infer is own
    assert module.moe_infer is own


@pytest.mark.parametrize("name", TWINS)
def test_every_twin_has_an_original(name: str) -> None:
    path, _, kind = name.rpartition(".")
    module = __import__(path, fromlist=[kind])
    assert all(hasattr(getattr(module, kind), method) for method in TWINS[name])
