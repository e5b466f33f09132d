"""FasterCache against diffusers' hooks: attention, and the unconditional half."""

from __future__ import annotations

import pytest

from tests.parity.compare import assert_parity, close, compiled
from tests.parity.hooks import by_hooks
from tests.parity.settings import FASTER, FASTER_DISTILLED, faster
from tests.parts import attentions, is_cross
from tests.zoo import ZOO, denoise_guided, make


def spatial(name: str) -> list[str]:
    """The attentions that diffusers' default patterns take."""
    module = make(ZOO[name])
    return [
        path
        for path in attentions(module)
        if path.split(".")[0].endswith("blocks")
        and not path.startswith("temporal")
        and not is_cross(path, module.get_submodule(path))
    ]


@pytest.mark.parametrize("name", FASTER)
def test_equals_the_hooks(name: str) -> None:
    expected, (run, _) = assert_parity(
        name,
        faster(name),
        28,
        "spatial",
        spatial(name),
        lowerings=("auto", "conditional"),
        loop=denoise_guided,
    )
    whole = max(expected.batches)
    full = [step for step, batch in enumerate(expected.batches) if batch == whole]
    assert run.steps("guidance") == full
    assert len(full) < 28


@pytest.mark.parametrize("name", ["cogvideox", "pixart"])
def test_equals_the_hooks_at_other_settings(name: str) -> None:
    hooks = faster(
        name,
        spatial_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(-1, 901),
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(100, 800),
        alpha_low_frequency=1.3,
        alpha_high_frequency=0.9,
        attention_weight_callback=lambda _: 0.3,
    )
    assert_parity(name, hooks, 28, "spatial", spatial(name), loop=denoise_guided)


@pytest.mark.parametrize("name", FASTER_DISTILLED)
def test_equals_the_hooks_without_a_second_half(name: str) -> None:
    hooks = faster(name, distilled=True)
    assert_parity(name, hooks, 28, "spatial", spatial(name))


@pytest.mark.slow
def test_inductor_agrees() -> None:
    hooks = faster("cogvideox")
    expected = by_hooks(ZOO["cogvideox"], hooks, 12, loop=denoise_guided)
    run = compiled(
        "cogvideox", hooks.config, 12, backend="inductor", loop=denoise_guided
    )
    assert close(run.outputs, expected.outputs, 1e-4)
    graphs = run.module.cache_stats.graphs_compiled
    assert graphs == 3
    denoise_guided(run.module, ZOO["cogvideox"], 12)
    assert run.module.cache_stats.graphs_compiled == graphs
