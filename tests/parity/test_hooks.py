"""The oracles themselves: hooks of diffusers do what the parity tests take them to do.

Where they are wrong, a test here shows it, so that a difference between a hook and a
compiled graph can be told from a mistake.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from torch import Tensor

from tests.models import same
from tests.parity.hooks import (
    Apply,
    HookRun,
    by_hooks,
    by_hooks_in_turn,
    caching,
    calibrated_ratios,
)
from tests.parity.settings import (
    FASTER,
    FASTER_DISTILLED,
    FIRST_BLOCK,
    LAYERS,
    MAG,
    NO_FIRST_BLOCK,
    NO_MAG,
    SEA,
    faster,
    first_block,
    mag,
    sea,
    taylor_seer,
)
from tests.parts import attentions, blocks, feed_forwards, is_cross, trunk
from tests.zoo import (
    ZOO,
    Clock,
    TinyModel,
    denoise,
    denoise_guided,
    first_inputs,
    make,
)

both_lengths = pytest.mark.parametrize("steps", [12, 28])
DEFAULT_TAYLOR = [0, 1, 2, 4, 9, 14, 19]


def timesteps(tiny: TinyModel, steps: int) -> list[float]:
    """What the pipeline's ``current_timestep`` is at each step."""
    scheduler = tiny.scheduler()
    scheduler.set_timesteps(steps)
    return [tiny.current(t) for t in scheduler.timesteps]


def mixed(run: HookRun, path: str) -> bool:
    """Whether the module ran at some steps and not at others."""
    return 1 < len(run.steps(path)) < len(run.outputs)


def tail(name: str) -> str:
    """The last block of a model."""
    return trunk(make(ZOO[name]))[-1]


def nothing(module: torch.nn.Module, clock: Clock) -> None:
    """No hooks."""


@pytest.mark.parametrize("tiny", ZOO.values(), ids=lambda tiny: tiny.name)
def test_without_hooks_every_part_runs_at_every_step(tiny: TinyModel) -> None:
    run = by_hooks(tiny, nothing, 3)
    module = make(tiny)
    parts = {*attentions(module), *feed_forwards(module), *blocks(module)}
    assert run.computed == [parts | {"proj_out"}] * 3
    assert run.batches == [tiny.latents[0]] * 3
    assert same(run.outputs, denoise(module, tiny, 3))


def test_pyramid_computes_every_nth_call() -> None:
    def config(clock: Clock) -> PyramidAttentionBroadcastConfig:
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=3,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=clock,
        )

    run = by_hooks(ZOO["flux"], caching(config), 12)
    assert run.steps("transformer_blocks.0.attn") == [0, 3, 6, 9]
    assert run.steps("transformer_blocks.0.ff") == list(range(12))


@both_lengths
@pytest.mark.parametrize("name", FIRST_BLOCK)
def test_first_block_skips_some_steps(name: str, steps: int) -> None:
    run = by_hooks(ZOO[name], first_block(name), steps)
    head, *rest = trunk(make(ZOO[name]))
    assert run.steps(head) == list(range(steps))
    assert mixed(run, rest[-1])
    assert all(run.steps(path) == run.steps(rest[-1]) for path in rest)
    assert run.steps(rest[-1])[0] == 0


@pytest.mark.parametrize("name", NO_FIRST_BLOCK)
def test_first_block_fails_on(name: str) -> None:
    apply = caching(lambda _: FirstBlockCacheConfig())
    with pytest.raises(NO_FIRST_BLOCK[name]):
        by_hooks(ZOO[name], apply, 2)


def test_first_block_needs_a_context() -> None:
    apply = caching(lambda _: FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="No cache context is set"):
        by_hooks(ZOO["flux"], apply, 2, context=None)


@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "qwenimage"])
def test_taylor_computes_at_the_steps_of_its_defaults(name: str) -> None:
    run = by_hooks(ZOO[name], caching(lambda _: TaylorSeerCacheConfig()), 20)
    assert run.steps("transformer_blocks.0.attn") == DEFAULT_TAYLOR
    assert run.steps("transformer_blocks.0") == list(range(20))


@pytest.mark.parametrize("name", ["cogvideox", "wan", "ltx", "pixart", "cogview4"])
def test_taylor_matches_nothing_on_attn1_with_defaults(name: str) -> None:
    tiny = ZOO[name]
    run = by_hooks(tiny, caching(lambda _: TaylorSeerCacheConfig()), 6)
    assert same(run.outputs, denoise(make(tiny), tiny, 6))


@pytest.mark.parametrize("name", LAYERS)
def test_taylor_on_attention_and_feed_forward(name: str) -> None:
    run = by_hooks(ZOO[name], taylor_seer(name), 20)
    module = make(ZOO[name])
    inside = tuple(f"{path}." for path in blocks(module))
    forecast = {
        path
        for path in (*attentions(module), *feed_forwards(module))
        if path.startswith(inside)
        # Its one feed-forward serves two streams, so hooks cannot be put on it.
        and not (name == "cogview4" and path.endswith("ff"))
    }
    assert all(run.steps(path) == DEFAULT_TAYLOR for path in forecast)
    assert all(output.isfinite().all() for output in run.outputs)


def test_taylor_counts_calls_and_not_steps() -> None:
    def config(_: Clock) -> TaylorSeerCacheConfig:
        return TaylorSeerCacheConfig(cache_identifiers=[r".*\.ff"])

    # The two calls of a step have different lengths, and that is what is noticed.
    with pytest.raises(RuntimeError, match="must match the size"):
        by_hooks(ZOO["cogview4"], caching(config), 8)


def test_taylor_lite_forecasts_the_last_projection_alone() -> None:
    apply = caching(lambda _: TaylorSeerCacheConfig(use_lite_mode=True))
    run = by_hooks(ZOO["wan"], apply, 20)
    for path in ("blocks.0", "blocks.1", "proj_out"):
        assert run.steps(path) == DEFAULT_TAYLOR
    assert all(output.abs().mean() > 0.1 for output in run.outputs)


@pytest.mark.parametrize(
    ("before", "after", "interval", "expected"),
    [
        (1, None, 3, [0, 2, 5, 8, 11]),
        (3, 9, 4, [0, 1, 2, 4, 8, 9, 10, 11]),
        (5, None, 2, [0, 1, 2, 3, 4, 6, 8, 10]),
    ],
)
def test_taylor_windows(
    before: int, after: int | None, interval: int, expected: list[int]
) -> None:
    def config(_: Clock) -> TaylorSeerCacheConfig:
        return TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=before,
            disable_cache_after_step=after,
        )

    run = by_hooks(ZOO["flux"], caching(config), 12)
    assert run.steps("single_transformer_blocks.1.attn") == expected


def test_mag_schedule_of_flux() -> None:
    apply = caching(lambda _: MagCacheConfig(mag_ratios=FLUX_MAG_RATIOS))
    run = by_hooks(ZOO["flux"], apply, 28)
    expected = [0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 21, 24, 26, 27]
    for path in trunk(make(ZOO["flux"])):
        assert run.steps(path) == expected


@both_lengths
@pytest.mark.parametrize("name", MAG)
def test_mag_skips_some_steps(name: str, steps: int) -> None:
    run = by_hooks(ZOO[name], mag(name, steps), steps)
    assert mixed(run, tail(name))
    retained = list(range(round(0.2 * steps)))
    assert run.steps(tail(name))[: len(retained)] == retained
    assert all(output.isfinite().all() for output in run.outputs)


@pytest.mark.parametrize("name", NO_MAG)
def test_mag_fails_on(name: str) -> None:
    with pytest.raises(NO_MAG[name]):
        calibrated_ratios(ZOO[name], 4)


def test_mag_calibration_computes_everything() -> None:
    tiny = ZOO["wan"]
    ratios = calibrated_ratios(tiny, 8)
    assert len(ratios) == 8
    assert ratios[0] == 1.0
    assert all(0 < ratio < 100 for ratio in ratios)
    assert ratios != calibrated_ratios(tiny, 8, seed=2)


def test_mag_without_a_context_counts_two_streams_as_one() -> None:
    apply = caching(
        lambda _: MagCacheConfig(mag_ratios=FLUX_MAG_RATIOS, num_inference_steps=28)
    )
    first, second = by_hooks_in_turn(ZOO["flux"], apply, 28, contexts=(None, None))
    assert first.steps("transformer_blocks.0") != second.steps("transformer_blocks.0")


@both_lengths
@pytest.mark.parametrize("name", SEA)
def test_sea_skips_some_steps(name: str, steps: int) -> None:
    run = by_hooks(ZOO[name], sea(name), steps, placed=True)
    ran = run.steps(tail(name))
    assert mixed(run, tail(name))
    assert ran[0] == 0
    assert ran[-1] == steps - 1
    assert max(later - earlier for earlier, later in itertools.pairwise(ran)) <= 3
    assert run.steps(trunk(make(ZOO[name]))[0]) == ran


def test_sea_computes_where_it_is_not_told_the_step() -> None:
    tiny = ZOO["wan"]
    run = by_hooks(tiny, sea("wan"), 6)
    assert same(run.outputs, denoise(make(tiny), tiny, 6))


def halved(times: Sequence[float], every: int = 5) -> list[bool]:
    """Whether FasterCache's defaults leave out the unconditional half, by step."""
    return [
        index > 0 and -1 < time < 641 and index % every != 0
        for index, time in enumerate(times)
    ]


@both_lengths
@pytest.mark.parametrize("name", FASTER)
def test_faster_with_guidance(name: str, steps: int) -> None:
    tiny = ZOO[name]
    run = by_hooks(tiny, faster(name), steps, loop=denoise_guided)
    half = halved(timesteps(tiny, steps))
    batch = tiny.latents[0]
    assert run.batches == [batch // 2 if out else batch for out in half]
    assert {output.shape[0] for output in run.outputs} == {batch}
    module = make(tiny)
    for path in attentions(module):
        expected = list(range(steps))
        if path.startswith(("transformer_blocks", "blocks")) and not is_cross(
            path, module.get_submodule(path)
        ):
            expected = [i for i in expected if not half[i] or i % 2 == 0]
        assert run.steps(path) == expected


@both_lengths
@pytest.mark.parametrize("name", FASTER_DISTILLED)
def test_faster_with_distilled_guidance(name: str, steps: int) -> None:
    tiny = ZOO[name]
    run = by_hooks(tiny, faster(name, distilled=True), steps)
    times = timesteps(tiny, steps)
    path = f"{tail(name)}.attn{1 if name.startswith(('wan', 'cogview4')) else ''}"
    assert run.steps(path) == [
        index for index, time in enumerate(times) if time >= 681 or index % 2 == 0
    ]


def test_faster_breaks_when_it_begins_inside_its_range() -> None:
    def config(clock: Clock) -> FasterCacheConfig:
        return FasterCacheConfig(
            spatial_attention_timestep_skip_range=(-1, 1001),
            is_guidance_distilled=True,
            current_timestep_callback=clock,
        )

    with pytest.raises(TypeError):
        by_hooks(ZOO["flux"], caching(config), 2)


def test_faster_does_not_split_what_it_does_not_know() -> None:
    # SD3's pooled prompts are not among the arguments that are halved.
    def config(clock: Clock) -> FasterCacheConfig:
        return FasterCacheConfig(tensor_format="BCHW", current_timestep_callback=clock)

    with pytest.raises(RuntimeError, match="must match the size"):
        by_hooks(ZOO["sd3"], caching(config), 28, loop=denoise_guided)


IN_TURN = {
    "first_block": first_block("wan"),
    "mag": mag("wan", 12),
    "sea": sea("wan"),
    "taylor_seer": taylor_seer("wan"),
}


@pytest.mark.parametrize("method", IN_TURN)
def test_streams_with_contexts_are_each_as_if_alone(method: str) -> None:
    tiny, apply = ZOO["wan"], IN_TURN[method]
    first, second = by_hooks_in_turn(tiny, apply, 12, placed=True)
    for run, seed in ((first, 1), (second, 2)):
        alone = by_hooks(tiny, apply, 12, seed=seed, context="cond", placed=True)
        assert same(run.outputs, alone.outputs)
        assert run.computed == alone.computed


def test_faster_gives_one_stream_the_attention_of_the_other() -> None:
    tiny = ZOO["wan"]
    apply = faster("wan", distilled=True)
    _, second = by_hooks_in_turn(tiny, apply, 12)
    assert not same(second.outputs, by_hooks(tiny, apply, 12, seed=2).outputs)


def twice(apply: Apply, name: str) -> tuple[Tensor, Tensor]:
    """Two steps with the same arguments: what is reused is what would be computed."""
    tiny = ZOO[name]
    module = make(tiny)
    apply(module, Clock())
    outputs = []
    with torch.no_grad():
        for step in range(2):
            with module.cache_context(
                "cond", step_index=step, sigma=0.5, num_inference_steps=4
            ):
                outputs.append(module(**first_inputs(tiny), return_dict=False)[0])
    return outputs[0], outputs[1]


def any_latents(_: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Latents in the shape that SeaCache wants."""
    return [kwargs["hidden_states"].reshape(1, 1, 1, -1)]


ALWAYS = {
    "first_block": caching(lambda _: FirstBlockCacheConfig(threshold=1e9)),
    "mag": caching(
        lambda _: MagCacheConfig(
            mag_ratios=[1.0] * 4, num_inference_steps=4, retention_ratio=0.0
        )
    ),
    "sea": caching(
        lambda _: SeaCacheConfig(threshold=1e9, raw_vision_callback=any_latents)
    ),
}


@pytest.mark.parametrize("method", ALWAYS)
@pytest.mark.parametrize("name", ["flux", "wan", "flux_controlnet", "wan_vace"])
def test_residuals_between_blocks_are_added_twice(name: str, method: str) -> None:
    computed, reused = twice(ALWAYS[method], name)
    assert not torch.equal(computed, reused)
    close = torch.allclose(computed, reused, rtol=1e-3, atol=1e-4)
    assert close is (name in ("flux", "wan"))
