"""SmoothCache schedules: their text, their model and the preset."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graphcache.analysis.view import Analysis
from graphcache.errors import PolicyError
from graphcache.policy import HoldOutput, Mask, SmoothCacheSchedule, smoothcache
from graphcache.policy.smoothcache import layer_type, layers_of, model_class
from graphcache.program import Region
from tests.models import tiny
from tests.programs import source
from tests.zoo import ZOO, first_inputs, make

SCHEDULE = SmoothCacheSchedule(
    {"attn1": (1, 0, 1), "ff": (1, 1, 0)},
    model="TinyTransformer",
    layers={"attn1": 2, "ff": 2},
)
OWN = """{
  "model": "TinyTransformer",
  "layers": {"attn1": 2, "ff": 2},
  "steps": 3,
  "computed": {
    "attn1": [1, 0, 1],
    "ff": [1, 1, 0]
  }
}
"""


def region(path: str, kind: str = "attention") -> Region:
    return Region(path, path, kind, "self", False, "Attn", (), (), ())


def test_one_policy_per_type_of_layer() -> None:
    first, second = smoothcache(SCHEDULE)
    assert [first.name, second.name] == ["attn1", "ff"]
    assert first.decision == Mask((1, 0, 1), 3)
    assert second.decision == Mask((1, 1, 0), 3)
    assert first.predictor == HoldOutput()
    assert first.regions.reject(region("blocks.0.attn1")) is None
    assert first.regions.reject(region("blocks.0.ff")) == "is of type ff, not attn1"


def test_the_type_is_the_last_name_of_the_path() -> None:
    assert layer_type(region("transformer_blocks.3.attn1")) == "attn1"
    assert layer_type(region("blocks.3.mlp.0")) == "mlp"
    found = [region("a.attn"), region("b.attn"), region("b.ff", "feed-forward")]
    assert layers_of([*found, region("b", "block")]) == {"attn": 2, "ff": 1}


def test_text_goes_both_ways() -> None:
    assert SCHEDULE.to_json() == OWN
    assert SmoothCacheSchedule.from_json(OWN) == SCHEDULE
    assert SCHEDULE.steps == 3


def test_files_of_the_authors_are_read_and_fit_any_model() -> None:
    read = SmoothCacheSchedule.from_json('{"attn1": [1, 0, 0, 1]}')
    assert read == SmoothCacheSchedule({"attn1": (1, 0, 0, 1)})
    read.check_model("Anything", {})


def test_the_model_is_told_by_the_graph() -> None:
    zoo = ZOO["pixart"]
    analysis = Analysis(source(make(zoo), first_inputs(zoo)))
    assert model_class(analysis) == "PixArtTransformer2DModel"
    schedule = SmoothCacheSchedule(
        {"attn1": (1, 0)}, model_class(analysis), layers_of(analysis.regions)
    )
    assert schedule.layers == {"attn1": 2, "attn2": 2, "ff": 2}
    (policy,) = smoothcache(schedule)
    found = policy.regions.candidates(analysis)
    assert len(found) == 6
    taken = [region.path for region in found if policy.regions.reject(region) is None]
    assert taken == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
    with pytest.raises(PolicyError, match=r"made for PixArt.* and this model is Tiny"):
        policy.regions.candidates(Analysis(source(tiny())))


def test_a_schedule_of_another_model_is_refused() -> None:
    SCHEDULE.check_model("TinyTransformer", {"attn1": 2, "ff": 2, "attn2": 1})
    with pytest.raises(PolicyError, match="made for TinyTransformer and this model is"):
        SCHEDULE.check_model("Other", {"attn1": 2, "ff": 2})
    with pytest.raises(PolicyError, match="2 layers of type ff and this model has 0"):
        SCHEDULE.check_model("TinyTransformer", {"attn1": 2})


def test_a_loop_of_another_length_is_refused() -> None:
    with pytest.raises(PolicyError, match="for 3 steps and the loop has 50"):
        smoothcache(SCHEDULE)[0].decision.check(50)


@pytest.mark.parametrize(
    ("computed", "message"),
    [
        ({}, "says nothing"),
        ({"attn1": ()}, "one 0 or 1 per step"),
        ({"attn1": (1, 2)}, "one 0 or 1 per step"),
        ({"attn1": (1, 0), "ff": (1, 0, 1)}, "2 and 3 steps"),
    ],
)
def test_bad_schedules_are_refused(computed: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        SmoothCacheSchedule(computed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[1, 0]", "is not a JSON object"),
        ('{"attn1": 1}', "lists one 0 or 1 per step"),
        ('{"attn1": [1, 3]}', "one 0 or 1 per step"),
        ('{"computed": [1]}', "lists one 0 or 1 per step"),
        ('{"computed": {"ff": [1]}, "steps": 2}', "says 2 steps and lists 1"),
        ('{"computed": {"ff": [1]}, "layers": 3}', "a number for each type"),
        ('{"computed": {"ff": [1]}, "layers": {"ff": "x"}}', "a number for each type"),
    ],
)
def test_bad_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        SmoothCacheSchedule.from_json(text)


def test_types_that_cannot_name_a_policy_are_refused() -> None:
    schedule = SmoothCacheSchedule.from_json(json.dumps({"a-b": [1, 0]}))
    with pytest.raises(PolicyError, match="not an identifier"):
        smoothcache(schedule)
