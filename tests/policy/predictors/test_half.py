"""A predictor of the conditional half, seen from the full batch."""

from __future__ import annotations

import pytest
import torch

from graphcache.errors import PolicyError
from graphcache.policy import HoldResidual, LinearExtrapolation, Predictor, Step, Taylor
from graphcache.policy.predictors import ConditionalHalf
from tests.policy.gates import drifting, values_of


@pytest.mark.parametrize(
    "predictor", [LinearExtrapolation(), Taylor(1), HoldResidual()], ids=str
)
def test_the_graph_of_the_half_goes_on_from_what_the_full_batch_kept(
    predictor: Predictor,
) -> None:
    before, after = drifting(3, (4, 3), seed=1), drifting(3, (4, 3), seed=2)
    whole = ConditionalHalf(predictor)
    example = whole.initial([after[0]], [before[0]])
    seen = alone = [torch.zeros_like(value) for value in example]
    for index in (0, 1):
        scalars = values_of(predictor.scalars, Step(index))
        full, half = [after[index]], [after[index][2:]]
        seen = whole.update(full, [before[index]], seen, scalars)
        alone = predictor.update(half, [before[index][2:]], alone, scalars)
        assert all(map(torch.equal, seen, alone))
    scalars = values_of(predictor.scalars, Step(2))
    (half,), _ = predictor.predict([before[2][2:]], seen, scalars)
    (full,), _ = whole.predict([before[2]], seen, scalars)
    assert torch.equal(full, torch.cat([half, half]))


def test_an_odd_batch_has_no_halves() -> None:
    with pytest.raises(PolicyError, match=r"a batch of shape \(3, 2\)"):
        ConditionalHalf(Taylor()).initial([torch.zeros(3, 2)], [])
