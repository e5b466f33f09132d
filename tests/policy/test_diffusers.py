"""diffusers' configs, read as policies."""

from __future__ import annotations

import pytest
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig

from graphcache import Interval, PolicyError, never_reuse, pyramid_attention_broadcast
from graphcache.policy import configuration


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


def test_pab_config_without_ranges_warns_and_is_left_alone() -> None:
    config = PyramidAttentionBroadcastConfig()
    with pytest.warns(UserWarning, match="skip_range=2"):
        (policy,) = configuration(config).policies
    assert policy.decision == Interval(2, (100, 800))
    assert config.spatial_attention_block_skip_range is None


@pytest.mark.parametrize("config", [None, 3, "pab", {"spatial": 2}, object()])
def test_unknown_config_is_refused(config: object) -> None:
    with pytest.raises(PolicyError, match="is no cache config"):
        configuration(config)


def test_diffusers_config_without_a_reader_is_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="FasterCacheConfig is no cache config"):
        configuration(FasterCacheConfig())


def test_a_class_that_only_shares_the_name_is_refused() -> None:
    fake = type("PyramidAttentionBroadcastConfig", (), {})()
    with pytest.raises(PolicyError, match="is no cache config"):
        configuration(fake)


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


def test_lists_merge_and_refuse_repeated_names() -> None:
    mixed = [never_reuse(), pyramid_attention_broadcast(spatial=2)]
    names = [policy.name for policy in configuration(mixed).policies]
    assert names == ["always", "spatial"]
    with pytest.raises(PolicyError, match="several policies are named always"):
        configuration([never_reuse(), never_reuse()])
    with pytest.raises(PolicyError, match="empty"):
        configuration([])
