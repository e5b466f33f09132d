"""Captures that are good for some values of an argument only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import graphcache
from graphcache import pyramid_attention_broadcast
from tests.models import TinyAttention, same


class Masked(nn.Module):
    """Cuts its prompt to the length of a mask, as the host reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = TinyAttention()
        self.cross = TinyAttention(cross=True)

    def forward(self, hidden_states: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        """f32[1, 4, 8] to the same."""
        prompt = hidden_states[:, : int(mask.sum())]
        hidden_states = hidden_states + self.attn(hidden_states)
        return hidden_states + self.cross(hidden_states, prompt + 1) + timestep


def made() -> tuple[Masked, Any]:
    torch.manual_seed(0)
    module = Masked().eval()
    policies = pyramid_attention_broadcast(spatial=2, window=None)
    return module, graphcache.compile(module, policies, backend="eager")


def steps(module: nn.Module, masks: list[Tensor]) -> list[Tensor]:
    """One generation; each step has its own mask."""
    generator = torch.Generator().manual_seed(1)
    outputs = []
    with torch.no_grad():
        for index, mask in enumerate(masks):
            x = torch.randn(1, 4, 8, generator=generator)
            timestep = torch.tensor([900.0 - index])
            outputs.append(module(hidden_states=x, timestep=timestep, mask=mask))
    return outputs


FULL = torch.tensor([True, True, True])
SHORT = torch.tensor([True, False, True])


def test_equal_values_are_one_capture() -> None:
    _, subject = made()
    steps(subject, [FULL, FULL.clone(), FULL, FULL.clone()])
    stats = subject.cache_stats
    assert stats.captures == 1
    assert stats.computed["spatial"] == 2


def test_other_values_are_captured_again_and_start_over() -> None:
    module, subject = made()
    masks = [FULL, SHORT, FULL, SHORT]
    # Nothing of one mask is reused under the other.
    assert same(steps(subject, masks), steps(module, masks))
    assert subject.cache_stats.captures == 2


def test_a_value_that_is_written_to_is_another_value() -> None:
    module, subject = made()
    for generation in (1, 2):
        subject._reset_stateful_cache()
        mask = FULL.clone()
        given, expected = [], []
        for kept in (FULL, SHORT):
            mask.copy_(kept)
            given += steps(subject, [mask])
            expected += steps(module, [mask])
        assert same(given, expected)
        assert subject.cache_stats.captures == 2, generation


def test_a_write_that_torch_does_not_count_is_seen() -> None:
    module, subject = made()
    mask = FULL.clone()
    given, expected = [], []
    for kept in (FULL, SHORT):
        mask.numpy()[:] = kept.numpy()
        given += steps(subject, [mask])
        expected += steps(module, [mask])
    assert same(given, expected)


def test_inference_mode_compares_values_too() -> None:
    module, subject = made()
    with torch.inference_mode():
        masks = [FULL.clone(), SHORT.clone()]
        assert same(steps(subject, masks), steps(module, masks))
    assert subject.cache_stats.captures == 2
