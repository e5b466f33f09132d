"""FasterCache predicts the unconditional half of a batch, and no other prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import GuidanceConfig, PolicyError, fastercache
from tests.models import same


class Pictures(nn.Module):
    """A transformer's signature over pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> tuple[Tensor]:
        """f32[b, 2, 6, 6], f32[b, 2] and f32[b] to f32[b, 2, 6, 6]."""
        shift = encoder_hidden_states[:, :, None, None] + timestep[:, None, None, None]
        return (self.conv(hidden_states) + 0.001 * shift,)


GUIDED = [GuidanceConfig(every=3, window=(-1, 2000), tensor_format="BCHW")]


def module() -> nn.Module:
    torch.manual_seed(0)
    return Pictures().eval()


def compiled() -> Any:
    return graphcache.compile(module(), GUIDED, backend="eager")


def run(subject: Any, latents: Tensor, steps: int, *, guided: bool) -> list[Tensor]:
    """A loop over a batch of two prompts, or of the two halves of one."""
    prompts = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    outputs = []
    with torch.no_grad():
        for step in range(steps):
            timestep = torch.full((2,), 900.0 - step)
            (output,) = subject(latents, prompts, timestep)
            outputs.append(output.clone())
            if guided:
                first, second = output.chunk(2)
                output = torch.cat([first + 3.0 * (second - first)] * 2)
            latents = latents - 0.1 * output
    return outputs


def noise(*, alike: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 2, 6, 6, generator=generator)
    return latents[:1].repeat(2, 1, 1, 1) if alike else latents


def test_guidance_is_predicted() -> None:
    subject = compiled()
    run(subject, noise(alike=True), 6, guided=True)
    computed = [r.computed["guidance"] for r in subject.cache_stats.steps]
    assert computed == [True, False, False, True, False, False]


def test_two_prompts_are_refused_at_the_first_step() -> None:
    subject = compiled()
    for _ in range(2):
        with pytest.raises(PolicyError, match=r"halves of hidden_states differ: .*"):
            run(subject, noise(alike=False), 6, guided=False)
        assert len(subject.cache_stats.steps) == 0
        assert subject._graphcache_runner.clock.streams == {}
    good = run(subject, noise(alike=True), 6, guided=True)
    assert same(good, run(compiled(), noise(alike=True), 6, guided=True))


def test_two_prompts_that_begin_with_one_noise_are_refused_before_a_prediction() -> (
    None
):
    subject = compiled()
    with pytest.raises(PolicyError, match="halves of hidden_states differ"):
        run(subject, noise(alike=True), 6, guided=False)
    steps = subject.cache_stats.steps
    assert [r.computed["guidance"] for r in steps] == [True]


def test_without_guidance_two_prompts_are_each_as_alone() -> None:
    attention = fastercache(spatial=2, window=None)
    assert not any(isinstance(part, GuidanceConfig) for part in attention)
    disabled = compiled()
    disabled.disable_cache()
    latents = noise(alike=False)
    assert same(
        run(disabled, latents, 4, guided=False), run(module(), latents, 4, guided=False)
    )


def test_halves_are_compared_twice_a_generation(monkeypatch: Any) -> None:
    calls = []
    original = torch.equal

    def counted(*args: Any) -> bool:
        calls.append(args)
        return original(*args)

    subject = compiled()
    monkeypatch.setattr("graphcache.runtime.halves.torch.equal", counted)
    for generation in (1, 2):
        run(subject, noise(alike=True), 8, guided=True)
        subject._reset_stateful_cache()
        assert len(calls) == 2 * generation
    assert subject.cache_stats.device_reads == 0
