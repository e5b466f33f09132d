"""The TeaCache preset."""

from __future__ import annotations

import math
from typing import Any

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import (
    AccumulatedChange,
    Blocks,
    Ends,
    HoldResidual,
    ModulatedInput,
    TimestepEmbedding,
    teacache,
)


def test_observes_the_modulated_input_and_computes_both_ends() -> None:
    policy = teacache(0.25)
    assert policy.regions == Blocks()
    assert policy.decision.indicator == AccumulatedChange(ModulatedInput())
    assert policy.decision.threshold == 0.25
    assert policy.decision.forced == Ends(1, 1, lenient=True)
    assert policy.predictor == HoldResidual()


def test_options_go_where_they_belong() -> None:
    policy = teacache(0.1, [2, 0], timestep_only=True, absolute=True, last=False)
    wanted = AccumulatedChange(TimestepEmbedding(), (2.0, 0.0), True)
    assert policy.decision.indicator == wanted
    assert policy.decision.forced == Ends(1, 0, lenient=True)
    assert teacache(0.1, steps=30).decision.forced == Ends(1, 1, 30, lenient=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "a threshold must be"),
        ({"threshold": math.nan}, "a threshold must be"),
        ({"threshold": 0.1, "coefficients": ()}, "coefficients of a polynomial"),
        ({"threshold": 0.1, "coefficients": (math.nan,)}, "coefficients of a"),
        ({"threshold": 0.1, "steps": 0}, "the number of steps"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        teacache(**options)
