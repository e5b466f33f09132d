"""The Pyramid Attention Broadcast preset."""

from __future__ import annotations

import pytest

from graphcache import Interval, PolicyError, pyramid_attention_broadcast


def test_one_policy_per_kind() -> None:
    policies = pyramid_attention_broadcast(2, 3, 6, window=(100, 900))
    assert [policy.name for policy in policies] == ["spatial", "temporal", "cross"]
    assert policies[1].decision == Interval(3, (100, 900))


def test_temporal_paths_leave_spatial_only_when_temporal_is_asked_for() -> None:
    (alone,) = pyramid_attention_broadcast(spatial=2)
    spatial, _ = pyramid_attention_broadcast(spatial=2, temporal=3)
    assert alone.regions.exclude == ()
    assert spatial.regions.exclude


def test_no_interval_is_an_error() -> None:
    with pytest.raises(PolicyError, match="at least one"):
        pyramid_attention_broadcast()
