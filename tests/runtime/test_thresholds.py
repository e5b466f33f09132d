"""Thresholds are set while a loop runs, and nothing is compiled for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphcache
from graphcache import PolicyError
from tests.models import run_loop, same, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC


def compiled(config: object = DYNAMIC, **kwargs: Any) -> Any:
    return graphcache.compile(tiny(), config, backend="eager", **kwargs)


def computed(subject: Any) -> list[bool]:
    return [record.computed["tail"] for record in subject.cache_stats.steps]


def test_thresholds_by_policy_name() -> None:
    assert dict(compiled().cache_thresholds) == {"tail": 0.3}
    assert dict(compiled([DYNAMIC, STATIC]).cache_thresholds) == {"tail": 0.3}
    assert dict(compiled(STATIC).cache_thresholds) == {}
    assert repr(compiled().cache_thresholds) == "{'tail': 0.3}"


@pytest.mark.parametrize("lowering", ["split", "conditional"])
def test_set_in_mid_loop_and_obeyed_from_the_next_step(lowering: str) -> None:
    subject = compiled(lowering=lowering)
    subject.cache_thresholds["tail"] = float("inf")
    graphs = None
    inputs = tiny_inputs()
    with torch.no_grad():
        for step in range(8):
            if step == 4:
                subject.cache_thresholds["tail"] = 0
                graphs = subject.cache_stats.graphs_compiled
            inputs["timestep"] = torch.full((2,), 900.0 - step)
            (output,) = subject(**inputs)
            inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
    assert computed(subject) == [True, False, False, False, True, True, True, True]
    stats = subject.cache_stats
    assert (stats.captures, stats.graphs_compiled) == (1, graphs)


def test_each_threshold_is_a_policy_with_that_threshold() -> None:
    """The oracle: the module compiled with the threshold in its policy."""
    subject = compiled()
    seen = set()
    for threshold in (0.05, 0.1, 0.2, 0.3, 0.7, 3.0):
        subject.cache_thresholds["tail"] = threshold
        subject.cache_stats.clear()
        outputs = run_loop(subject, 12)
        policy = graphcache.Policy(
            "tail",
            DYNAMIC.regions,
            type(DYNAMIC.decision)(DYNAMIC.decision.indicator, threshold),
            DYNAMIC.predictor,
        )
        other = compiled(policy)
        assert same(outputs, run_loop(other, 12))
        assert computed(subject) == computed(other)
        seen.add(sum(computed(subject)))
    assert len(seen) > 3
    assert subject.cache_stats.captures == 1


@pytest.mark.parametrize("value", [-0.1, float("nan"), "0.3", None, True])
def test_bad_values_are_refused_and_change_nothing(value: object) -> None:
    subject = compiled()
    with pytest.raises(PolicyError, match="a threshold must be a number"):
        subject.cache_thresholds["tail"] = value
    assert dict(subject.cache_thresholds) == {"tail": 0.3}


def test_names_without_a_threshold_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"'head' has no .* that have one: tail"):
        compiled().cache_thresholds["head"] = 0.1
    with pytest.raises(PolicyError, match=r"'attention' .* that have one: none"):
        compiled(STATIC).cache_thresholds["attention"] = 0.1
    with pytest.raises(AttributeError):
        compiled().cache_thresholds = {"tail": 0.1}
