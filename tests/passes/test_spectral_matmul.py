"""spectral-matmul: transforms and complex numbers in real products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphcache
from graphcache import BackendError, GuidanceConfig
from graphcache.backends.eager import EagerBackend
from graphcache.passes.dead_code import DeadCode
from graphcache.passes.manager import run_passes
from graphcache.passes.pairs import RULES, Pair, join, split
from graphcache.passes.pipeline import clean_pipeline
from graphcache.passes.spectral_matmul import SpectralMatmul, spectral_nodes
from graphcache.program import Program, Stage, fake_value, placeholders
from tests.models import tiny
from tests.programs import lowered, source
from tests.zoo import ZOO, first_inputs, make

Function = Callable[[Tensor], Any]
aten = torch.ops.aten


class Apply(nn.Module):
    """A function as a module with a transformer's signature."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        """The function of the latents."""
        return (self.function(hidden_states),)


def program_of(function: Function, x: Tensor) -> Program:
    """A function as a lowered program."""
    inputs = {"hidden_states": x, "timestep": torch.ones(1)}
    captured = run_passes(source(Apply(function).eval(), inputs), clean_pipeline())
    return run_passes(captured.evolve(stage=Stage.LOWERED), [DeadCode()])


def rewritten(program: Program) -> Program:
    """The program without complex numbers inside."""
    result = run_passes(program, [SpectralMatmul()])
    assert not spectral_nodes(result.graph)
    return result


def values_of(program: Program) -> list[Tensor]:
    """Seeded values for every input of a program."""
    generator = torch.Generator().manual_seed(3)

    def value(fake: Tensor) -> Tensor:
        if fake.dtype.is_floating_point or fake.dtype.is_complex:
            return torch.randn(fake.shape, dtype=fake.dtype, generator=generator)
        return torch.ones(fake.shape, dtype=fake.dtype)

    return [value(fake_value(node)) for node in placeholders(program.graph)]


def run(program: Program, values: list[Tensor]) -> list[Tensor]:
    """One run under the eager backend."""
    return list(EagerBackend().compile(program, {})(list(values)))


def worst(program: Program, values: list[Tensor]) -> float:
    """The largest relative difference that the pass makes."""
    pairs = zip(run(rewritten(program), values), run(program, values), strict=True)
    found = 0.0
    for got, want in pairs:
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        found = max(found, float(torch.dist(got, want) / want.norm().clamp(1e-6)))
    return found


SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(0, 2), st.booleans(), st.randoms(use_true_random=False))
def test_rules_are_the_transforms_of_torch(
    shape: list[int], norm: int, flag: bool, random: Any
) -> None:
    dims = random.sample(range(len(shape)), random.randint(1, len(shape)))
    size = shape[dims[-1]]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for op, value, rest in (
        (aten._fft_r2c, x, (dims, norm, flag)),
        (aten._fft_c2c, torch.fft.fft(x), (dims, norm, flag)),
        (aten._fft_c2r, aten._fft_r2c(x, dims, 0, True), (dims, norm, size)),
    ):
        got = RULES[op](split(value) if value.is_complex() else value, *rest)
        want = op(value, *rest)
        got = join(got) if isinstance(got, Pair) else got
        assert torch.dist(got, want) <= 1e-5 * want.norm().clamp(1e-6)


def test_what_others_define_is_taken_apart() -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))

    def there_and_back(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(x, dim=(1, 2), norm="ortho") / (1 - 3j)
        return torch.fft.irfftn(torch.fft.fftshift(spectrum, 1), s=(5, 6), dim=(1, 2))

    assert worst(program_of(there_and_back, x), [x]) <= 1e-5


@pytest.mark.parametrize("count", [1, 2, 64, 90, 127])
def test_long_transforms_stay_exact(count: int) -> None:
    x = torch.randn(2, count, generator=torch.Generator().manual_seed(1))
    program = program_of(lambda x: torch.fft.ifft(torch.fft.fft(x) * 2).real, x)
    assert worst(program, [x]) <= 1e-6


COMPLEX: dict[str, Function] = {
    "rotate": lambda x: torch.view_as_real(
        torch.view_as_complex(x) * torch.polar(torch.ones(4), x[0, :, 0])
    ),
    "moves": lambda x: torch.view_as_real(
        torch.view_as_complex(x).roll(1, -1).flip(0).transpose(0, 1)[1:].clone()
    ),
    "parts": lambda x: torch.cat(
        [z.abs() + z.real * z.conj().imag for z in torch.view_as_complex(x).split(2, 1)]
    ),
    "mixed": lambda x: torch.view_as_real(
        torch.cat([torch.view_as_complex(x), x[..., 0]]).sum(0, keepdim=True) - 2.0
    ),
    "where": lambda x: (
        torch.where(
            x[..., 0] > 0, torch.view_as_complex(x), torch.complex(x[..., 1], x[..., 0])
        ).imag
    ),
    "scaled": lambda x: torch.view_as_real(
        (torch.view_as_complex(x).to(torch.complex128) / 3.0 + x[..., 0]).to(
            torch.complex64
        )
    ),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_arithmetic(name: str) -> None:
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    assert worst(program_of(COMPLEX[name], x), [x]) <= 1e-6


GUIDED = graphcache.fastercache(guidance=GuidanceConfig(tensor_format="BFCHW"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "config"),
    [("cogvideox", GUIDED), ("wan", graphcache.seacache())],
    ids=["fastercache", "seacache"],
)
def test_every_variant_of_spectral_policies(model: str, config: object) -> None:
    inputs = first_inputs(ZOO[model])
    program = graphcache.trace(make(ZOO[model]), config, **inputs)
    variants = graphcache.variants(program, config)
    assert any(spectral_nodes(part.graph) for part in variants)
    for part in variants:
        assert worst(part, values_of(part)) <= 1e-5
        buffers = rewritten(part)
        assert buffers.inputs == part.inputs
        assert buffers.stores == part.stores


def test_golden() -> None:
    program = program_of(lambda x: torch.fft.fft(x).real, torch.randn(2, 3))
    result = SpectralMatmul().run(program)
    assert_expected_inline(
        str(result.program),
        """\
lowered program {
  input %hidden_states: f32[2, 3]
  %arange: i64[3] = arange(3, device=cpu, pin_memory=False)
  %unsqueeze: i64[3, 1] = unsqueeze(%arange, 1)
  %unsqueeze_1: i64[1, 3] = unsqueeze(%arange, 0)
  %mul: i64[3, 3] = mul(%unsqueeze, %unsqueeze_1)
  %remainder: i64[3, 3] = remainder(%mul, 3)
  %_to_copy: f64[3, 3] = _to_copy(%remainder, dtype=f64)
  %mul_1: f64[3, 3] = mul(%_to_copy, 2.0943951023931953)
  %cos: f64[3, 3] = cos(%mul_1)
  %_to_copy_1: f32[3, 3] = _to_copy(%cos, dtype=f32)
  %mm: f32[2, 3] = mm(%hidden_states, %_to_copy_1)
  return %mm
}""",
    )


def test_edits_are_counted_and_the_second_run_makes_none() -> None:
    program = program_of(COMPLEX["rotate"], torch.randn(3, 4, 2))
    result = SpectralMatmul().run(program)
    assert result.edits == len(spectral_nodes(program.graph)) > 0
    assert SpectralMatmul().run(result.program).edits == 0


def test_real_programs_stay_as_they_are() -> None:
    program = lowered(tiny(), (True,))
    result = SpectralMatmul().run(program)
    assert result.program is program
    assert result.edits == 0


def test_an_operator_without_a_form_is_named() -> None:
    program = program_of(lambda x: torch.fft.fft(x).cumsum(0).real, torch.randn(2, 3))
    with pytest.raises(BackendError, match=r"cumsum.* of complex numbers has no form"):
        SpectralMatmul().run(program)
