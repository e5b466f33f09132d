"""split, and what is lowered around it."""

from __future__ import annotations

from expecttest import assert_expected_inline

from graphcache.lowering import lower
from graphcache.passes.split import next_cut
from graphcache.policy import Blocks, HoldResidual, Policy, Threshold
from graphcache.policy.indicators import RelativeChange
from graphcache.policy.policy import never_reuse
from graphcache.printer import format_program
from graphcache.program import Fork, InputKind, Program, Stage, output_values
from tests.models import tiny
from tests.programs import cached

TAIL = Policy("tail", Blocks(head=1), Threshold(RelativeChange(), 0.1), HoldResidual())


def fork(depth: int = 3) -> Fork:
    program = cached(tiny(depth=depth), TAIL)
    (tree,) = lower(program, [TAIL]).routes.values()
    assert isinstance(tree, Fork)
    return tree


def parts() -> tuple[Program, Program, Program]:
    tree = fork()
    assert isinstance(tree.compute, Program)
    assert isinstance(tree.reuse, Program)
    return tree.head, tree.compute, tree.reuse


def test_a_decision_cuts_the_program_into_a_head_and_two_tails() -> None:
    head, compute, reuse = parts()
    assert [p.stage for p in (head, compute, reuse)] == [Stage.LOWERED] * 3
    assert head.results == 0
    assert head.scores == ("tail",)
    attention = [
        [n.name for n in p.graph.nodes if "scaled_dot" in n.name]
        for p in (head, compute, reuse)
    ]
    assert list(map(len, attention)) == [1, 2, 0]


def test_the_head_hands_over_what_the_tails_read_and_nothing_else() -> None:
    head, *tails = parts()
    read = {e.target for tail in tails for e in tail.inputs_of(InputKind.LIVE)}
    assert set(head.lives) == read
    assert len(head.lives) == len(set(head.lives))


def test_no_decision_is_left_in_a_tail() -> None:
    for tail in parts()[1:]:
        kinds = {entry.kind for entry in tail.inputs}
        assert not kinds & {InputKind.DECISION, InputKind.THRESHOLD}
        assert tail.scores == ()


def test_the_tail_that_reuses_is_an_addition() -> None:
    *_, reuse = parts()
    assert_expected_inline(
        format_program(reuse),
        """\
lowered program {
  input &blocks.1..blocks.2:run.0: f32[2, 3, 8]
  input ^tail/add_2: f32[2, 3, 8]
  region blocks.0: block
  region blocks.0.attn1: self attention
  region blocks.1: block
  region blocks.1.attn1: self attention
  region blocks.2: block
  region blocks.2.attn1: self attention
  region blocks.1..blocks.2:run: run gate tail
  %add: f32[2, 3, 8] = add(^tail/add_2, &blocks.1..blocks.2:run.0)
  %mul_3: f32[2, 3, 8] = mul(%add, 1.0)
  return %mul_3
}""",
    )


def test_a_program_without_dynamic_decisions_is_not_cut() -> None:
    assert next_cut(cached(tiny(), never_reuse())) is None


def test_every_segment_names_its_outputs() -> None:
    for program in fork().programs:
        count = program.results + len(program.stores)
        count += len(program.scores) + len(program.lives)
        assert len(output_values(program.graph)) == count
