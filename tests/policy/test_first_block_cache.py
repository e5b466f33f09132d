"""The first-block cache preset."""

from __future__ import annotations

import math

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import (
    Blocks,
    HeadStream,
    HoldResidual,
    RelativeChange,
    Threshold,
    first_block_cache,
)


def test_holds_what_follows_the_first_block() -> None:
    policy = first_block_cache()
    assert policy.regions == Blocks(head=1)
    assert policy.decision == Threshold(RelativeChange(HeadStream(1)), 0.05)
    assert not policy.decision.indicator.inclusive
    assert policy.predictor == HoldResidual()
    assert first_block_cache(math.inf).decision.threshold == math.inf


@pytest.mark.parametrize("threshold", [-0.1, math.nan, "0.1", None, True])
def test_thresholds_are_numbers_from_zero(threshold: object) -> None:
    with pytest.raises(PolicyError, match="a threshold must be a number"):
        first_block_cache(threshold)  # type: ignore[arg-type]
