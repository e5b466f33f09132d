"""Magnitude ratios against those that diffusers prints."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import MagCacheConfig
from torch import Tensor

import graphcache
from graphcache import calibrate, magcache
from tests.models import run_loop, same, tiny
from tests.parity.hooks import calibrated_ratios
from tests.zoo import ZOO, denoise, denoise_in_turn, make

STEPS = 6


def ratios(name: str) -> list[float]:
    zoo = ZOO[name]
    report = calibrate(
        make(zoo), "magcache", lambda module: denoise(module, zoo, STEPS)
    )
    return report.ratios


@pytest.mark.parametrize("name", ["cogvideox", "flux2", "pixart"])
def test_equals_what_diffusers_prints(name: str) -> None:
    assert ratios(name) == calibrated_ratios(ZOO[name], STEPS)


def test_streams_in_turn_are_measured_apart() -> None:
    """Without a context the hooks of diffusers would mix them."""
    zoo = ZOO["pixart"]
    report = calibrate(
        make(zoo), "magcache", lambda module: denoise_in_turn(module, zoo, STEPS)
    )
    assert report.streams == {
        "cond": calibrated_ratios(zoo, STEPS, seed=1),
        "uncond": calibrated_ratios(zoo, STEPS, seed=2),
    }


def test_a_stream_that_is_laid_out_anew_on_the_way() -> None:
    """The hooks fail on Latte, whose last block has frames where its first has places.

    The length of a token's vector does not depend on where the token is.
    """
    zoo = ZOO["latte"]
    module = make(zoo)
    entered: list[Tensor] = []
    left: list[Tensor] = []
    module.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args: entered.append(args[0])
    )
    module.temporal_transformer_blocks[-1].register_forward_hook(
        lambda _, args, output: left.append(output)
    )
    with torch.no_grad():
        denoise(module, zoo, STEPS)
    batch = zoo.latents[0]
    norms = []
    for before, after in zip(entered, left, strict=True):
        after = after.unflatten(0, (batch, -1)).transpose(1, 2)
        norms.append((after - before.unflatten(0, (batch, -1))).norm(dim=-1))
    expected = [float((b / a).mean()) for a, b in pairwise(norms)]
    assert ratios("latte") == pytest.approx([1.0, *expected], rel=1e-5)


def test_what_is_measured_is_what_the_policies_need() -> None:
    found = calibrate(tiny(), "magcache", lambda module: run_loop(module, STEPS)).ratios
    configs = (
        magcache(found, threshold=0.06),
        MagCacheConfig(mag_ratios=found, num_inference_steps=STEPS, threshold=0.06),
    )
    runs, computed = [], []
    for config in configs:
        subject = graphcache.compile(tiny(), config, backend="eager")
        runs.append(run_loop(subject, STEPS))
        steps = subject.cache_stats.steps
        computed.append([step.computed["magcache"] for step in steps])
    assert same(*runs)
    assert computed[0] == computed[1]
    assert 1 < sum(computed[0]) < STEPS
