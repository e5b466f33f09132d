"""The DBCache preset."""

from __future__ import annotations

import math
from typing import Any

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import (
    Blocks,
    Ends,
    HeadStream,
    HoldResidual,
    Mask,
    Step,
    TaylorResidual,
    dbcache,
)


def test_defaults_are_those_of_cache_dit() -> None:
    policy = dbcache()
    assert policy.regions == Blocks(8, 0)
    assert policy.decision.threshold == 0.08
    assert policy.decision.forced == Ends(8)
    assert policy.decision.indicator.probe == HeadStream(8)
    assert policy.decision.indicator.inclusive
    assert not policy.decision.indicator.limits
    assert policy.predictor == HoldResidual()


def test_options_go_where_they_belong() -> None:
    policy = dbcache(
        2,
        1,
        threshold=0.2,
        max_run=3,
        max_reused=9,
        max_drift=0.5,
        predictor=TaylorResidual(1),
    )
    assert policy.regions == Blocks(2, 1)
    indicator = policy.decision.indicator
    assert (indicator.max_run, indicator.max_reused) == (3, 9)
    assert indicator.max_drift == 0.5
    assert policy.predictor == TaylorResidual(1)


def test_a_mask_is_forced_after_the_warm_up() -> None:
    policy = dbcache(1, warmup=2, mask=[0, 0, 0, 1, 0, 1])
    assert policy.decision.forced == Mask((1, 1, 0, 1, 0, 1), 6)
    assert not policy.decision.forced.computes(Step(4))
    with pytest.raises(PolicyError, match="for 6 steps and the loop has 7"):
        policy.decision.check(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": 0}, "number of head blocks must be a positive integer"),
        ({"tail": -1}, "number of tail blocks"),
        ({"threshold": -1}, "a threshold must be"),
        ({"threshold": math.nan}, "a threshold must be"),
        ({"warmup": -1}, "number of first steps"),
        ({"max_run": 0}, "reused in a row"),
        ({"max_reused": 1.5}, "reused in all"),
        ({"max_drift": -0.5}, "a threshold must be"),
        ({"mask": [0, 2]}, "one 0 or 1 per step"),
        ({"mask": []}, "one 0 or 1 per step"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        dbcache(**options)
