"""The step mask preset."""

from __future__ import annotations

import pytest

from graphcache.errors import PolicyError
from graphcache.policy import (
    Attention,
    Blocks,
    EachBlock,
    HoldOutput,
    HoldResidual,
    Mask,
    Model,
    TaylorResidual,
    step_mask,
)


def test_all_blocks_hold_what_they_add() -> None:
    policy = step_mask([1, 0, 0, 1])
    assert policy.name == "mask"
    assert policy.regions == Blocks()
    assert policy.decision == Mask((1, 0, 0, 1), 4)
    assert policy.predictor == HoldResidual()


def test_other_regions_hold_their_outputs() -> None:
    assert step_mask([1, 0], Attention(), name="own").predictor == HoldOutput()
    assert step_mask([1, 0], Model()).predictor == HoldOutput()
    assert step_mask([1, 0], EachBlock()).predictor == HoldResidual()
    taylor = TaylorResidual(1)
    assert step_mask([1, 0], predictor=taylor).predictor == taylor


@pytest.mark.parametrize("mask", [[], [2, 1], "101", [None], [1, 0.5]])
def test_masks_are_zeros_and_ones(mask: object) -> None:
    with pytest.raises(PolicyError, match="one 0 or 1 per step"):
        step_mask(mask)  # type: ignore[arg-type]


def test_names_are_identifiers() -> None:
    with pytest.raises(PolicyError, match="not an identifier"):
        step_mask([1, 0], name="a b")
