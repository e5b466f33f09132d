"""The TaylorSeer preset."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphcache.errors import PolicyError
from graphcache.policy import (
    AnyOf,
    Attention,
    FeedForward,
    LastOutput,
    Taylor,
    Warmed,
    taylorseer,
)


def test_defaults_are_the_paper_s_regions_and_diffusers_numbers() -> None:
    policy = taylorseer()
    assert policy.regions == AnyOf((Attention(), FeedForward()))
    assert policy.decision == Warmed(5, 3, None)
    assert policy.predictor == Taylor(1, torch.bfloat16)


def test_lite_forecasts_the_last_output() -> None:
    policy = taylorseer(4, before=2, after=20, order=2, dtype=None, lite=True)
    assert policy.regions == LastOutput()
    assert policy.decision == Warmed(4, 2, 20)
    assert policy.predictor == Taylor(2)


def test_regions_of_your_own() -> None:
    assert taylorseer(regions=Attention(("cross",))).regions == Attention(("cross",))
    with pytest.raises(PolicyError, match="give no regions"):
        taylorseer(regions=Attention(), lite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "an interval must be a positive integer"),
        ({"before": -1}, "number of first steps"),
        ({"before": 5, "after": 4}, "from which all are computed"),
        ({"order": -1}, "order of a Taylor expansion"),
        ({"dtype": torch.int32}, "floating-point"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        taylorseer(**options)
