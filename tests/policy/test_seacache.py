"""The SeaCache preset."""

from __future__ import annotations

import math
from typing import Any

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import (
    Blocks,
    Ends,
    HoldResidual,
    Latents,
    LinearResidual,
    ModulatedInput,
    SpectralChange,
    seacache,
)


def test_defaults_are_those_of_diffusers() -> None:
    policy = seacache()
    assert policy.regions == Blocks()
    assert policy.decision.threshold == 0.25
    assert policy.decision.forced == Ends(1, 1)
    assert policy.decision.indicator == SpectralChange(Latents(), 3.0, 2)
    assert policy.predictor == LinearResidual()


def test_options_go_where_they_belong() -> None:
    policy = seacache(
        0.1, order=0, first=3, last=0, max_run=None, power=2, probe=ModulatedInput()
    )
    assert policy.decision.forced == Ends(3, 0)
    assert policy.decision.indicator == SpectralChange(ModulatedInput(), 2, None)
    assert policy.predictor == HoldResidual()
    assert seacache(steps=9).decision.forced == Ends(1, 1, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "a threshold must be"),
        ({"threshold": math.nan}, "a threshold must be"),
        ({"order": 2}, "must be an integer from 0 to 1, not 2"),
        ({"order": True}, "order of the extrapolation"),
        ({"first": -1}, "number of first steps"),
        ({"last": 1.5}, "number of last steps"),
        ({"max_run": 0}, "reused in a row"),
        ({"power": 0}, "power of the spectrum"),
        ({"power": "3"}, "power of the spectrum"),
        ({"steps": -1}, "number of steps"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        seacache(**options)
