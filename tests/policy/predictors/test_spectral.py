"""The unconditional half, against diffusers' hook."""

from __future__ import annotations

import pytest
import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.faster_cache import (
    FasterCacheDenoiserHook,
    _split_low_high_freq,
)
from torch import Tensor, nn

from graphcache.errors import PolicyError
from graphcache.policy import GuidanceConfig, Scalar, SpectralGuidance, Step
from graphcache.policy.fastercache import BATCHED
from graphcache.policy.predictors import split_spectrum
from tests.policy.gates import Traced, drifting, values_of

# Of diffusers' own call.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")
SHAPES = {
    "BCFHW": (4, 3, 2, 12, 10),
    "BFCHW": (4, 2, 3, 11, 16),
    "BCHW": (2, 4, 15, 9),
}


def constant(name: str, value: float) -> Scalar:
    return Scalar(name, lambda _: value)


@pytest.mark.parametrize("size", [(8, 8), (11, 7), (6, 20), (5, 4), (1, 1)])
def test_the_split_is_that_of_diffusers_without_the_shift(
    size: tuple[int, int],
) -> None:
    x = torch.randn(3, 2, *size)
    low, high = split_spectrum(x)
    for ours, theirs in zip((low, high), _split_low_high_freq(x), strict=True):
        shifted = torch.fft.fftshift(ours)
        assert torch.equal(torch.view_as_real(shifted), torch.view_as_real(theirs))
    assert torch.equal(low + high, torch.fft.fft2(x))
    assert not torch.logical_and(low != 0, high != 0).any()


class Doubling(nn.Module):
    """Gives the half of its list that it is called with."""

    def __init__(self, outputs: list[Tensor]) -> None:
        super().__init__()
        self.outputs, self.step = outputs, 0

    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        """The output of the step."""
        full = self.outputs[self.step]
        whole = hidden_states.shape[0] == full.shape[0]
        return (full if whole else full.chunk(2)[1],)


def by_hook(outputs: list[Tensor], times: list[float], layout: str) -> list[Tensor]:
    """What the hook of diffusers gives at the defaults of its config."""
    module = Doubling(outputs)

    def now() -> float:
        return times[module.step]

    hook = FasterCacheDenoiserHook(
        5,
        (-1, 641),
        layout,
        False,
        list(BATCHED),
        now,
        lambda _: 1.1 if 99 < now() < 901 else 1.0,
        lambda _: 1.1 if -1 < now() < 301 else 1.0,
    )
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(hook, "denoiser")
    results = []
    for output in outputs:
        results.append(module(hidden_states=output)[0])
        module.step += 1
    return results


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_diffusers_bit_for_bit(layout: str, dtype: torch.dtype) -> None:
    outputs = [value.to(dtype) for value in drifting(14, SHAPES[layout])]
    times = [999.0 - 70 * index for index in range(14)]
    wanted = by_hook(outputs, times, layout)
    guidance = GuidanceConfig(tensor_format=layout)
    predictor, decision = guidance.predictor, guidance.decision
    held = [torch.zeros_like(v) for v in predictor.initial([outputs[0]], ())]
    update, predict = Traced(predictor.update), Traced(predictor.predict)
    predicted = 0
    for index, (output, time) in enumerate(zip(outputs, times, strict=True)):
        step = Step(index, time)
        scalars = values_of(predictor.scalars, step)
        if decision.computes(step):
            held = update([output], [], held, scalars)
            (got,) = [output]
        else:
            half = output.chunk(2)[1]
            (got,), held = predict([half], held, scalars)
            predicted += 1
        assert got.dtype == dtype
        assert torch.equal(got, wanted[index])
    assert predicted == 7


def test_deltas_compound_until_the_next_full_step() -> None:
    predictor = SpectralGuidance("BCHW", constant("low", 2.0), constant("high", 1.0))
    low, high = torch.ones(1, 1, 4, 4) + 0j, torch.ones(1, 1, 4, 4) + 0j
    scalars = values_of(predictor.scalars, Step(1))
    half = torch.randn(1, 1, 4, 4)
    for expected in (2.0, 4.0, 8.0):
        _, (low, high) = predictor.predict([half], [low, high], scalars)
        assert torch.equal(low.real, torch.full_like(low.real, expected))
        assert torch.equal(high.real, torch.ones_like(high.real))


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(PolicyError, match="unknown tensor format 'BSC'"):
        SpectralGuidance("BSC", constant("low", 1), constant("high", 1))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 16, 8)], "is not BCHW"),
        ([(3, 4, 8, 8)], "a batch of 3"),
        ([(2, 4, 8, 8), (2, 4)], "has 2 outputs"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    shapes: list[tuple[int, ...]], message: str
) -> None:
    predictor = SpectralGuidance("BCHW", constant("low", 1), constant("high", 1))
    with pytest.raises(PolicyError, match=message):
        predictor.initial([torch.zeros(shape) for shape in shapes], ())
