"""Predictors and indicators are held to their types before anything is rewritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from graphcache import HoldOutput, Interval, Policy, PolicyError
from graphcache.policy import Attention, Blocks, HoldResidual, Threshold
from graphcache.policy.indicators import RelativeChange
from graphcache.policy.predictors import Plain
from tests.models import tiny
from tests.programs import cached


@dataclass(frozen=True)
class Wrong(HoldOutput):
    """Predicts or keeps something of another shape or dtype."""

    what: str = "predicts"

    def _spoil(self, values: Any, when: str) -> list[Tensor]:
        return [v.double() if self.what == when else v for v in values]

    def update(self, outputs: Any, operands: Any, buffers: Any, scalars: Any) -> Any:
        """The outputs, or not."""
        return self._spoil(outputs, "updates")

    def predict(self, operands: Any, buffers: Any, scalars: Any) -> Any:
        """The outputs, or not."""
        return self._spoil(buffers, "predicts"), self._spoil(buffers, "keeps")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("predicts", r"it predicts \(f64\[2, 3, 8\]\), wanted \(f32\[2, 3, 8\]\)"),
        ("keeps", r"it keeps, when it predicts, \(f64"),
        ("updates", r"it keeps, when the region is computed, \(f64"),
    ],
)
def test_a_predictor_that_does_not_fit_its_region(what: str, message: str) -> None:
    policy = Policy("p", Attention(), Interval(2), Wrong(what))
    with pytest.raises(PolicyError, match=rf"does not fit blocks\.0\.attn1: {message}"):
        cached(tiny(), policy)


@dataclass(frozen=True)
class Odd(RelativeChange):
    """Gives a score or buffers of the wrong type."""

    what: str = "vector"

    def measure(self, observed: Any, buffers: Any, scalars: Any) -> Any:
        """The score, or not."""
        score, *rest = super().measure(observed, buffers, scalars)
        if self.what == "vector":
            score = score.expand(2)
        return [score.bool() if self.what == "bool" else score, *rest]

    def carry(self, measured: Any, buffers: Any) -> Any:
        """The buffers, or fewer."""
        kept = super().carry(measured, buffers)
        return kept[:-1] if self.what == "carry" else kept


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("vector", r"the score of policy p is f32\[2\]"),
        ("bool", r"the score of policy p is bool\[\]"),
        ("carry", r"keeps after a reused step \(\), wanted its buffers"),
    ],
)
def test_an_indicator_that_gives_no_number_or_loses_a_buffer(
    what: str, message: str
) -> None:
    threshold = Threshold(Odd(what=what), 0.1)
    policy = Policy("p", Blocks(head=1), threshold, HoldResidual())
    with pytest.raises(PolicyError, match=message):
        cached(tiny(), policy)


def test_a_plain_predictor_reads_nothing() -> None:
    assert Plain().scalars == ()
    assert not Plain().continues
