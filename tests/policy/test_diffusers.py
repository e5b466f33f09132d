"""diffusers' configs, read as policies."""

from __future__ import annotations

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
    TextKVCacheConfig,
)
from diffusers.hooks import faster_cache, taylorseer_cache
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

from graphcache.errors import PolicyError
from graphcache.policy import (
    Attention,
    Configuration,
    GuidanceConfig,
    Interval,
    LastOutput,
    LinearExtrapolation,
    Modules,
    Policy,
    Step,
    Taylor,
    Warmed,
    Zeros,
    configuration,
    first_block_cache,
    magcache,
    never_reuse,
    pyramid_attention_broadcast,
    seacache,
)
from graphcache.policy.diffusers import ATTENTION_PATTERNS
from graphcache.program import Region


def region(path: str, *, declares_cross: bool = False, flow: str = "self") -> Region:
    return Region(path, path, "attention", flow, declares_cross, "Attn", (), (), ())


def test_pab_config_maps_ranges_windows_and_identifiers() -> None:
    def callback() -> int:
        return 7

    read = configuration(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=6,
            cross_attention_timestep_skip_range=(50, 900),
            cross_attention_block_identifiers=("only_here",),
            current_timestep_callback=callback,
        )
    )
    spatial, cross = read.policies
    assert spatial.decision == Interval(2, (100, 800))
    assert cross.decision == Interval(6, (50, 900))
    assert cross.regions.include == ("only_here",)
    assert read.timestep_callback is callback
    assert read.guidance is None


def test_pab_config_without_ranges_warns_and_is_left_alone() -> None:
    config = PyramidAttentionBroadcastConfig()
    with pytest.warns(UserWarning, match="skip_range=2"):
        (policy,) = configuration(config).policies
    assert policy.decision == Interval(2, (100, 800))
    assert config.spatial_attention_block_skip_range is None


def test_bad_ranges_are_refused_when_read() -> None:
    with pytest.raises(PolicyError, match="positive integer"):
        configuration(
            PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=0)
        )
    with pytest.raises(PolicyError, match="not ordered"):
        configuration(
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(800, 100),
            )
        )


def test_patterns_are_those_of_diffusers() -> None:
    assert set(ATTENTION_PATTERNS) == set(faster_cache._TRANSFORMER_BLOCK_IDENTIFIERS)
    own = taylorseer_cache._TRANSFORMER_BLOCK_IDENTIFIERS
    assert own == ATTENTION_PATTERNS


def test_faster_cache_defaults() -> None:
    def callback() -> int:
        return 7

    read = configuration(FasterCacheConfig(current_timestep_callback=callback))
    (spatial,) = read.policies
    assert spatial.name == "spatial"
    assert spatial.decision == Interval(2, (-1, 681))
    assert spatial.predictor == LinearExtrapolation(0.5)
    assert not spatial.required
    assert read.timestep_callback is callback
    assert read.guidance == GuidanceConfig()


def test_faster_cache_of_a_distilled_model_has_no_second_half() -> None:
    assert configuration(FasterCacheConfig(is_guidance_distilled=True)).guidance is None


def test_faster_cache_identifiers_only_narrow_what_diffusers_looks_at() -> None:
    (spatial,) = configuration(
        FasterCacheConfig(spatial_attention_block_identifiers=["attn1", "layers"])
    ).policies
    reject = spatial.regions.reject
    assert reject(region("transformer_blocks.3.attn1")) is None
    assert reject(region("blocks.3.attn1")) is None
    # Diffusers searches for the identifier, and so do we.
    assert reject(region("transformer_blocks.3.attn10")) is None
    wanted = "path matches none of 'attn1', 'layers'"
    assert reject(region("transformer_blocks.3.attn2")) == wanted
    # Not one of the patterns that its attention hooks begin with.
    refused = reject(region("layers.3.attn1"))
    assert refused is not None
    assert "'^blocks.*attn'" in refused
    crossed = reject(region("blocks.3.attn1", declares_cross=True, flow="cross"))
    assert crossed == "is cross-attention, wanted self or joint"
    # What is given its own tokens is self-attention, whatever it was built as.
    assert reject(region("blocks.3.attn1", declares_cross=True)) is None


def test_faster_cache_prefers_spatial_over_temporal() -> None:
    config = FasterCacheConfig(
        temporal_attention_block_skip_range=3,
        temporal_attention_timestep_skip_range=(10, 500),
    )
    spatial, temporal = configuration(config).policies
    assert temporal.decision == Interval(3, (10, 500))
    path = region("temporal_transformer_blocks.0.attn1")
    assert temporal.regions.reject(path) is None
    assert spatial.regions.reject(path) is not None
    none = FasterCacheConfig(
        spatial_attention_block_skip_range=None,
        temporal_attention_block_skip_range=3,
        temporal_attention_timestep_skip_range=None,
    )
    assert configuration(none).policies == ()


def test_faster_cache_weights_are_numbers_of_the_step() -> None:
    read = configuration(
        FasterCacheConfig(
            attention_weight_callback=lambda _: 0.3,
            alpha_low_frequency=1.5,
            low_frequency_weight_update_timestep_range=(200, 300),
            high_frequency_weight_callback=lambda _: 2,
            unconditional_batch_skip_range=4,
            unconditional_batch_timestep_skip_range=(0, 600),
            tensor_format="BCHW",
        )
    )
    _, weight = read.policies[0].predictor.scalars
    assert weight.of(Step(3)) == 0.3
    assert read.guidance is not None
    assert read.guidance.decision == Interval(4, (0, 600))
    assert read.guidance.tensor_format == "BCHW"
    low, high = read.guidance.predictor.scalars
    assert [low.of(Step(1, time)) for time in (250.0, 300.0)] == [1.5, 1.0]
    assert high.of(Step(1, 500.0)) == 2.0


def test_a_callback_that_wants_the_module_is_refused() -> None:
    config = FasterCacheConfig(attention_weight_callback=lambda module: module.weight)
    _, weight = configuration(config).policies[0].predictor.scalars
    with pytest.raises(PolicyError, match="called with None in place of the module"):
        weight.of(Step(1))


def test_first_block_cache() -> None:
    read = configuration(FirstBlockCacheConfig(threshold=0.2))
    assert read == Configuration((first_block_cache(0.2),))
    with pytest.raises(PolicyError, match="a threshold must be"):
        configuration(FirstBlockCacheConfig(threshold=-1))


def test_taylorseer_defaults_match_whole_paths_of_attention() -> None:
    (policy,) = configuration(TaylorSeerCacheConfig()).policies
    assert policy.regions == Modules(ATTENTION_PATTERNS)
    assert policy.required
    assert policy.decision == Warmed(5, 3, None)
    assert policy.predictor == Taylor(1, torch.bfloat16)
    reject = policy.regions.reject
    assert reject(region("single_transformer_blocks.0.attn")) is None
    assert reject(region("transformer_blocks.0.attn1")) is not None
    assert reject(region("transformer_blocks.0.attn.to_q")) is not None


def test_taylorseer_options_and_identifiers() -> None:
    read = configuration(
        TaylorSeerCacheConfig(
            cache_interval=4,
            disable_cache_before_step=2,
            disable_cache_after_step=30,
            max_order=2,
            taylor_factors_dtype=None,
            cache_identifiers=[r"blocks\.\d+\.attn1"],
            skip_predict_identifiers=[r"blocks\.\d+\.ffn"],
        )
    )
    skipped, forecast = read.policies
    decision = Warmed(4, 2, 30)
    assert skipped == Policy(
        "skipped", Modules((r"blocks\.\d+\.ffn",)), decision, Zeros()
    )
    assert forecast.regions == Modules((r"blocks\.\d+\.attn1",))
    assert forecast.decision == decision
    assert forecast.predictor == Taylor(2)


def test_taylorseer_with_only_skipped_modules_forecasts_the_defaults() -> None:
    config = TaylorSeerCacheConfig(skip_predict_identifiers=["a"])
    _, forecast = configuration(config).policies
    assert forecast.regions == Modules(ATTENTION_PATTERNS)


def test_taylorseer_lite_overrides_identifiers() -> None:
    config = TaylorSeerCacheConfig(
        use_lite_mode=True, cache_identifiers=["a"], skip_predict_identifiers=["b"]
    )
    (policy,) = configuration(config).policies
    assert policy.regions == LastOutput()
    assert policy.decision == Warmed(5, 3, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_interval": 0}, "positive integer"),
        ({"max_order": -1}, "order of a Taylor expansion"),
        ({"taylor_factors_dtype": torch.int8}, "floating-point"),
        ({"cache_identifiers": ["("]}, "not a regular expression"),
    ],
)
def test_taylorseer_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        configuration(TaylorSeerCacheConfig(**options))


@pytest.mark.parametrize("steps", [28, 50])
def test_mag_cache(steps: int) -> None:
    config = MagCacheConfig(
        threshold=0.1,
        max_skip_steps=2,
        retention_ratio=0.1,
        num_inference_steps=steps,
        mag_ratios=FLUX_MAG_RATIOS,
    )
    policy = magcache(
        FLUX_MAG_RATIOS, steps=steps, threshold=0.1, max_skip=2, retention=0.1
    )
    assert configuration(config) == Configuration((policy,))


def test_mag_cache_does_not_calibrate() -> None:
    with pytest.raises(PolicyError, match=r"graphcache\.calibrate measures them"):
        configuration(MagCacheConfig(calibrate=True))


def test_sea_cache() -> None:
    assert configuration(SeaCacheConfig()) == Configuration((seacache(),))
    config = SeaCacheConfig(
        threshold=0.1,
        residual_order=0,
        retention_steps=3,
        cache_end_steps=2,
        max_consecutive_cached=0,
        power_exp=2.0,
    )
    policy = seacache(0.1, order=0, first=3, last=2, max_run=None, power=2.0)
    assert configuration(config) == Configuration((policy,))


def test_sea_cache_callbacks_cannot_be_in_a_graph() -> None:
    config = SeaCacheConfig(raw_vision_callback=lambda *_: None)
    with pytest.raises(PolicyError, match=r"seacache\(probe="):
        configuration(config)


@pytest.mark.parametrize("config", [None, 3, "pab", {"spatial": 2}, object()])
def test_unknown_config_is_refused(config: object) -> None:
    with pytest.raises(PolicyError, match="is no cache config"):
        configuration(config)


def test_diffusers_config_without_a_reader_is_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="TextKVCacheConfig is no cache config"):
        configuration(TextKVCacheConfig())


def test_a_class_that_only_shares_the_name_is_refused() -> None:
    fake = type("PyramidAttentionBroadcastConfig", (), {})()
    with pytest.raises(PolicyError, match="is no cache config"):
        configuration(fake)


def test_lists_merge_and_refuse_repeated_names() -> None:
    mixed = [never_reuse(), pyramid_attention_broadcast(spatial=2)]
    names = [policy.name for policy in configuration(mixed).policies]
    assert names == ["always", "spatial"]
    with pytest.raises(PolicyError, match="several policies are named always"):
        configuration([never_reuse(), never_reuse()])
    with pytest.raises(PolicyError, match="empty"):
        configuration([])


def test_lists_hold_configs_and_guidance_too() -> None:
    guidance = GuidanceConfig()
    read = configuration(
        [FirstBlockCacheConfig(), Policy("x", Attention(), Interval(2)), guidance]
    )
    assert [policy.name for policy in read.policies] == ["first_block", "x"]
    assert read.guidance is guidance
    assert configuration(read) is read
    with pytest.raises(PolicyError, match="configured more than once"):
        configuration([guidance, guidance])
