"""The FORA preset."""

from __future__ import annotations

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import (
    AnyOf,
    Attention,
    FeedForward,
    HoldOutput,
    Interval,
    fora,
)


def test_attention_and_feed_forward_obey_one_interval() -> None:
    policy = fora(3)
    assert policy.regions == AnyOf((Attention(), FeedForward()))
    assert policy.decision == Interval(3)
    assert policy.predictor == HoldOutput()


@pytest.mark.parametrize("interval", [0, -2, 1.5, None])
def test_intervals_are_positive(interval: object) -> None:
    with pytest.raises(PolicyError, match="positive integer"):
        fora(interval)  # type: ignore[arg-type]
