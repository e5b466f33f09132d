"""plan-gates."""

from __future__ import annotations

import pytest
from torch import nn

from graphcache import (
    Attention,
    Interval,
    Policy,
    PolicyError,
    pyramid_attention_broadcast,
)
from graphcache.passes.find_regions import FindRegions
from graphcache.passes.plan_gates import PlanGates
from graphcache.policy import Blocks, HoldResidual, Model, Threshold
from graphcache.policy.indicators import RelativeChange
from graphcache.printer import format_plan
from graphcache.program import Program
from tests.models import tiny
from tests.programs import source


def found(module: nn.Module) -> Program:
    return FindRegions().run(source(module)).program


def test_tags_and_buffers_follow_the_policies() -> None:
    policies = pyramid_attention_broadcast(spatial=2, cross=3)
    result = PlanGates(policies).run(found(tiny(depth=1, cross=True)))
    assert result.edits == 2
    assert format_plan(result.program) == (
        "spatial: blocks.0.attn1 (self) holds &blocks.0.attn1.0: f32[2, 3, 8]\n"
        "cross: blocks.0.attn2 (cross) holds &blocks.0.attn2.0: f32[2, 3, 8]\n"
        "buffers: 384 bytes a stream"
    )


def test_the_first_policy_that_takes_a_region_keeps_it() -> None:
    first = Policy("first", Attention(include=("blocks.0",)), Interval(2))
    rest = Policy("rest", Attention(), Interval(3))
    program = PlanGates((first, rest)).run(found(tiny(depth=2))).program
    assert [gate.predicate for gate in program.gates] == ["first", "rest"]


def test_tagging_edits_no_node_and_is_idempotent() -> None:
    before = found(tiny())
    once = PlanGates(pyramid_attention_broadcast(spatial=2)).run(before).program
    assert once.module is before.module
    assert PlanGates(pyramid_attention_broadcast(spatial=2)).run(once).edits == 0


def test_a_policy_that_matches_nothing_lists_what_it_could_have_matched() -> None:
    with pytest.raises(PolicyError) as caught:
        PlanGates(pyramid_attention_broadcast(cross=2)).run(found(tiny(depth=1)))
    assert str(caught.value) == (
        "policy cross matches none of the 1 attention regions:\n"
        "  blocks.0.attn1 (self): cross: is self-attention, wanted cross"
    )


def test_a_required_policy_may_not_be_idle_even_if_another_matches() -> None:
    policies = pyramid_attention_broadcast(spatial=2, cross=2)
    with pytest.raises(PolicyError, match="wanted cross"):
        PlanGates(policies).run(found(tiny(depth=1)))


def test_an_optional_policy_may_be_idle() -> None:
    spatial, cross = pyramid_attention_broadcast(spatial=2, cross=2)
    idle = Policy(cross.name, cross.regions, cross.decision, required=False)
    assert PlanGates((spatial, idle)).run(found(tiny(depth=1))).edits == 1


def test_a_graph_without_attention_says_what_attention_is() -> None:
    with pytest.raises(PolicyError, match="holds no attention region"):
        PlanGates(pyramid_attention_broadcast(spatial=2)).run(found(tiny(depth=0)))


def test_a_region_inside_another_comes_first_and_overlaps_are_refused() -> None:
    inner = Policy("inner", Attention(), Interval(2))
    outer = Policy("outer", Blocks(head=1), Interval(3))
    program = PlanGates((outer, inner)).run(found(tiny(depth=3))).program
    names = [gate.region for gate in program.gates]
    assert names == [
        "blocks.1.attn1",
        "blocks.2.attn1",
        "blocks.0.attn1",
        "blocks.1..blocks.2:run",
    ]
    crossing = Policy("crossing", Blocks(tail=1), Interval(3))
    with pytest.raises(PolicyError, match=r"outer and crossing overlap: blocks\.1"):
        PlanGates((outer, crossing)).run(found(tiny(depth=3)))


def test_a_dynamic_decision_inside_another_region_is_refused() -> None:
    head = Threshold(RelativeChange(), 0.1)
    inner = Policy("inner", Blocks(head=1), head, HoldResidual())
    outer = Policy("outer", Model(), Interval(2))
    with pytest.raises(PolicyError, match="inner decides from data"):
        PlanGates((inner, outer)).run(found(tiny(depth=3)))


def test_too_few_blocks_are_named() -> None:
    policy = Policy("tail", Blocks(head=2), Interval(2))
    with pytest.raises(PolicyError, match=r"needs at least 3 blocks.*has 2 \(blocks"):
        PlanGates((policy,)).run(found(tiny(depth=2)))
