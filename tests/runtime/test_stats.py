"""Statistics: counted where it happens, and readable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch.utils._python_dispatch import TorchDispatchMode

import graphcache
from graphcache.policy import (
    Attention,
    Blocks,
    HoldResidual,
    Policy,
    RelativeChange,
    Threshold,
)
from graphcache.runtime.stats import StepRecord
from tests.models import run_loop, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC


class Reads(TorchDispatchMode):
    """Counts how often a tensor is read by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count reads and call."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def compiled(config: object, **kwargs: Any) -> Any:
    return graphcache.compile(
        tiny(depth=3), config, backend="eager", example_inputs=tiny_inputs(), **kwargs
    )


MIDDLE = Policy("middle", Blocks(1, 1), DYNAMIC.decision, HoldResidual())
LAST = Policy(
    "last",
    Attention(include=(r"blocks\.2",)),
    Threshold(RelativeChange(max_run=1), 0.3),
)


@pytest.mark.parametrize(
    ("config", "dynamic"),
    [
        (STATIC, 0),
        ([STATIC, Policy("more", Blocks(head=2), STATIC.decision, HoldResidual())], 0),
        (DYNAMIC, 1),
        ([DYNAMIC, STATIC], 1),
        ([MIDDLE, LAST], 2),
    ],
)
def test_one_read_per_dynamic_decision_and_step(config: object, dynamic: int) -> None:
    """Held to what torch sees of the loop; the first step asks for no score."""
    steps = 8
    subject = compiled(config)
    with Reads() as reads, torch.no_grad():
        inputs = tiny_inputs()
        for index in range(steps):
            with subject.cache_context("c", timestep=900.0 - index):
                (output,) = subject(**inputs)
            inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
    assert reads.count == subject.cache_stats.host_reads == dynamic * (steps - 1)
    scores = [record.scores for record in subject.cache_stats.steps]
    assert scores[0] == {}
    assert all(len(found) == dynamic for found in scores[1:])


def test_scores_are_what_was_compared() -> None:
    subject = compiled(DYNAMIC)
    run_loop(subject, 12)
    first, *later = subject.cache_stats.steps
    assert (first.computed, first.scores) == ({"tail": True}, {})
    for record in later:
        assert record.computed["tail"] == (record.scores["tail"] > 0.3)


def test_summary() -> None:
    subject = compiled([DYNAMIC, STATIC])
    run_loop(subject, 5)
    subject._reset_stateful_cache()
    states = [tiny_inputs(seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        for index in range(9):
            for name, inputs in zip(("cond", "uncond"), states, strict=True):
                with subject.cache_context(name, timestep=900 - 20 * index):
                    (output,) = subject(**inputs)
                inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
    assert_expected_inline(
        str(subject.cache_stats),
        """\
call 0  attention  #..#.
call 0  tail       #..#.
cond    attention  #..#..#..
cond    tail       #....#...
uncond  attention  #..#..#..
uncond  tail       #..#..#..
attention: 49 of 69 regions reused (71 %)
tail: 16 of 23 regions reused (70 %)
23 steps, 1 reset; 1 capture, 5 graphs compiled
read by the host: 20 scores, 0 device tensors
buffers: 960 bytes per stream planned, 1,920 held at most""",
    )


def test_summary_of_nothing() -> None:
    subject = graphcache.compile(tiny(), STATIC, backend="eager")
    assert_expected_inline(
        str(subject.cache_stats),
        """\
0 steps, 0 resets; 0 captures, 0 graphs compiled
read by the host: 0 scores, 0 device tensors
buffers: 0 bytes per stream planned, 0 held at most""",
    )


def test_summary_shows_the_latest_pass_of_each_stream() -> None:
    subject = compiled(STATIC)
    stats = subject.cache_stats
    for index, computed in enumerate([1, 0, 0, 1]):
        record = StepRecord("c", index, None, {"attention": bool(computed)})
        stats.record(record, stats.regions)
    assert str(stats).splitlines()[0] == "c  attention  #..#"
    stats.record(StepRecord("c", 0, None, {"attention": True}), stats.regions)
    assert str(stats).splitlines()[0] == "c  attention  #"


def test_a_cleared_summary_keeps_what_was_compiled() -> None:
    subject = compiled(DYNAMIC)
    run_loop(subject, 4)
    stats = subject.cache_stats
    stats.clear()
    assert (stats.host_reads, stats.resets, list(stats.steps)) == (0, 0, [])
    assert (stats.captures, stats.graphs_compiled) == (1, 3)
