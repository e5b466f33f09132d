"""Tensors that no operator makes: what is read and written through ``.data``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import CaptureError, never_reuse
from tests.doors import behind_dynamo
from tests.models import TinyAttention


class Subject(nn.Module):
    """Attention over what a function makes of the input."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.attn = TinyAttention()
        self.register_buffer("table", torch.arange(8.0))
        self.loose = torch.arange(8.0)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """f32[2, 8] to f32[1, 2, 8]."""
        return self.attn(self.body(self, x)[None]) + timestep


def write(_: Any, x: Tensor) -> Tensor:
    made = x.new_zeros(1, 8)
    made.data[:, 1:].copy_(x.mean(0)[None, 1:])
    return x + made


def read(module: Any, x: Tensor) -> Tensor:
    return x * module.table.data + module.attn.to_q.weight.data[0]


def write_known(_: Any, x: Tensor) -> Tensor:
    counts = torch.zeros(4)
    counts.data[1] = 3.0
    return x * int(counts[1].item())


def replace(_: Any, x: Tensor) -> Tensor:
    made, other = torch.zeros(8), x.mean(0)
    made.data = other
    other.mul_(2)
    made[0] = 7
    return x + made + other


def deepen(_: Any, x: Tensor) -> Tensor:
    copied = copy.deepcopy(x)
    copied[0] = 1
    return x + copied


@pytest.mark.parametrize("body", [write, read, write_known, replace, deepen])
def test_equals_the_module(body: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    module = Subject(body).eval().requires_grad_(False)
    subjects = [graphcache.compile(module, never_reuse(), backend="eager")]
    if body in (write, read):
        subjects.append(behind_dynamo(copy.deepcopy(module), never_reuse()))
    for subject in subjects:
        with torch.no_grad():
            for seed in (1.0, 2.0):
                x, time = torch.randn(2, 8) * seed, torch.tensor([500.0])
                assert torch.equal(subject(x, time), module(x, time))


def write_buffer(module: Any, x: Tensor) -> Tensor:
    module.table.data[0] = 3.0
    return x + module.table


def write_argument(_: Any, x: Tensor) -> Tensor:
    x.data.mul_(2.0)
    return x


def write_loose(module: Any, x: Tensor) -> Tensor:
    module.loose.data.mul_(2.0)
    return x + module.loose


def lose(_: Any, x: Tensor) -> Tensor:
    return x + x.as_subclass(Tensor)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (write_buffer, "the forward writes to table:"),
        (write_argument, "the forward writes to x:"),
        (write_loose, "loose"),
        (lose, r"comes from no operator of torch .* clone\(\) it"),
    ],
)
def test_state_is_not_written_to(
    body: Callable[[Any, Tensor], Tensor], message: str
) -> None:
    module = Subject(body).eval().requires_grad_(False)
    subject = graphcache.compile(module, never_reuse(), backend="eager")
    x = torch.ones(2, 8)
    with torch.no_grad(), pytest.raises(CaptureError, match=message):
        subject(x, torch.tensor([500.0]))
    assert torch.equal(x, torch.ones(2, 8))
    assert torch.equal(module.table, torch.arange(8.0))
    assert torch.equal(module.loose, torch.arange(8.0))


def cogvideox() -> Any:
    torch.manual_seed(0)
    module = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=16,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=False,
    )
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("door", ["direct", "dynamo"])
def test_sine_positions_of_other_heights_widths_and_frames(door: str) -> None:
    module, reference = cogvideox(), cogvideox()
    subject = (
        graphcache.compile(module, never_reuse(), backend="eager")
        if door == "direct"
        else behind_dynamo(module, never_reuse())
    )
    sizes = [(3, 8, 8), (3, 8, 12), (2, 8, 8), (3, 6, 8)]
    with torch.no_grad():
        for frames, height, width in sizes if door == "direct" else sizes[1:3]:
            given = {
                "hidden_states": torch.randn(2, frames, 4, height, width),
                "encoder_hidden_states": torch.randn(2, 8, 16),
                "timestep": torch.tensor([500, 500]),
            }
            assert torch.equal(subject(**given)[0], reference(**given)[0])
