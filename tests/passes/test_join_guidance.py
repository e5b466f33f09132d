"""join-guidance: the full batch, or its conditional half and a prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import GuidanceConfig, PolicyError, fastercache, first_block_cache
from graphcache.passes.join_guidance import PREDICATE, REGION
from graphcache.printer import format_program
from graphcache.program import InputKind, Program
from tests.models import tiny, tiny_inputs


class Pictures(nn.Module):
    """A convolution over pictures of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        """f32[b, 2, 6, 6] to the same."""
        scale = timestep[:, None, None, None] / 1000
        return (self.conv(hidden_states).sin() * scale,)


CONFIG = GuidanceConfig(tensor_format="BCHW", window=(-1, 2000), every=3)


def pictures() -> nn.Module:
    torch.manual_seed(0)
    return Pictures().eval()


def call(batch: int = 4) -> dict[str, Any]:
    # Both halves denoise the same latents.
    half = torch.randn(-(-batch // 2), 2, 6, 6)
    return {
        "hidden_states": torch.cat([half, half])[:batch],
        "timestep": torch.full((batch,), 500.0),
    }


def joined(batch: int = 4) -> Program:
    return graphcache.trace(pictures(), [CONFIG], **call(batch))


def test_the_model_is_one_gate_over_both_batches() -> None:
    program = joined()
    assert program.predicates == (PREDICATE,)
    assert [buffer.name for buffer in program.buffers] == [f"{REGION}.0", f"{REGION}.1"]
    text = format_program(program)
    assert text.count("gate ?guidance") == 1
    assert "f32[4, 2, 6, 6] = conv2d" in text
    assert "f32[2, 2, 6, 6] = conv2d" in text
    targets = [e.target for e in program.inputs_of(InputKind.WEIGHT)]
    assert targets == ["conv.weight", "conv.bias"]


def test_a_predicted_step_runs_the_conditional_half_alone() -> None:
    full, half = graphcache.variants(joined(), [CONFIG])
    assert "f32[4, 2, 6, 6] = conv2d" in format_program(full)
    assert "f32[4, 2, 6, 6] = conv2d" not in format_program(half)


def test_the_conditional_half_is_what_the_model_gives_for_it() -> None:
    subject = graphcache.compile(pictures(), [CONFIG], backend="eager")
    plain, inputs = pictures(), call()
    with torch.no_grad():
        for timestep in (900.0, 800.0, 700.0, 600.0):
            inputs["timestep"] = torch.full((4,), timestep)
            (got,), (want,) = subject(**inputs), plain(**inputs)
            assert torch.equal(got[2:], want[2:])
            inputs["hidden_states"] = inputs["hidden_states"] * 1.1
    computed = [r.computed[PREDICATE] for r in subject.cache_stats.steps]
    assert computed == [True, False, False, True]


@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        ([CONFIG], call(3), "batch of 3 is not an unconditional half"),
        (
            [GuidanceConfig(tensor_format="BCFHW")],
            call(),
            "is not BCFHW: give another tensor_format",
        ),
    ],
)
def test_a_call_without_halves_is_refused(
    config: Any, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        graphcache.trace(pictures(), config, **inputs)


def test_a_context_of_one_half_is_refused_at_every_first_step() -> None:
    subject = graphcache.compile(pictures(), [CONFIG], backend="eager")
    with torch.no_grad():
        with subject.cache_context("cond_uncond"):
            subject(**call())
        with (
            pytest.raises(PolicyError, match="called in turn"),
            subject.cache_context("cond"),
        ):
            subject(**call())


def test_a_decision_from_data_cannot_be_combined_with_it() -> None:
    config = [first_block_cache(0.1), CONFIG]
    with pytest.raises(PolicyError, match="cannot be combined"):
        graphcache.trace(tiny(), config, **tiny_inputs())


def test_distilled_guidance_has_no_second_half() -> None:
    assert not any(isinstance(part, GuidanceConfig) for part in fastercache())
