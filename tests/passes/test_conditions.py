"""conditions: a graph is edited together with its branches, and means what it meant."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

import graphcache
from graphcache.backends.eager import EagerBackend
from graphcache.passes.conditions import (
    conditions,
    copy_whole,
    drop_unread_operands,
    lift_constants,
    operands,
    parts,
    pass_reals,
    sides,
)
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import conditional_pipeline
from graphcache.passes.spectral_matmul import SpectralMatmul, is_complex, spectral_nodes
from graphcache.program import Program, Stage, placeholders
from tests.backends.values import values_of, worst_difference
from tests.models import tiny
from tests.programs import cached
from tests.zoo import ZOO, first_inputs, make

aten = torch.ops.aten
GUIDED = graphcache.fastercache(
    guidance=graphcache.GuidanceConfig(tensor_format="BFCHW")
)


def branch(build: Callable[..., fx.Node], reads: int) -> fx.GraphModule:
    """A branch of two inputs that gives what `build` makes of the first `reads`."""
    graph = fx.Graph()
    inputs = [graph.placeholder(name) for name in ("x", "y")]
    graph.output((build(graph, *inputs[:reads]),))
    return fx.GraphModule(torch.nn.Module(), graph)


def choosing(then: fx.GraphModule, other: fx.GraphModule) -> fx.GraphModule:
    """A graph of a predicate, `x` and `y` that takes one of two branches."""
    graph = fx.Graph()
    predicate, x, y = (graph.placeholder(name) for name in ("p", "x", "y"))
    tripled = graph.call_function(aten.mul.Tensor, (y, 3))
    names = [graph.get_attr(name) for name in ("then", "other")]
    chosen = graph.call_function(
        torch.ops.higher_order.cond, (predicate, *names, (x, tripled))
    )
    graph.output((graph.call_function(operator.getitem, (chosen, 0)),))
    root = torch.nn.Module()
    root.add_module("then", then)
    root.add_module("other", other)
    return fx.GraphModule(root, graph)


def doubled(graph: fx.Graph, x: fx.Node) -> fx.Node:
    return graph.call_function(aten.mul.Tensor, (x, 2))


def holding(value: float) -> fx.GraphModule:
    """A branch that adds a tensor which it holds."""

    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_function(aten.add.Tensor, (x, graph.get_attr("own")))

    graph = fx.Graph()
    x, _ = (graph.placeholder(name) for name in ("x", "y"))
    root = torch.nn.Module()
    root.register_buffer("own", torch.full((2,), value))
    graph.output((build(graph, x),))
    return fx.GraphModule(root, graph)


def recompiled(module: fx.GraphModule) -> fx.GraphModule:
    for part in parts(module):
        part.graph.lint()
        part.recompile()
    return module


def test_what_no_branch_reads_is_neither_given_nor_worked_out() -> None:
    module = choosing(branch(doubled, 1), branch(doubled, 1))
    drop_unread_operands(module)
    (node,) = conditions(module.graph)
    _, x, y = placeholders(module.graph)
    assert operands(node) == [x]
    assert not y.users
    assert [len(placeholders(side.graph)) for side in sides(node)] == [1, 1]
    (got,) = recompiled(module)(torch.tensor(True), torch.ones(2), torch.ones(2))
    assert torch.equal(got, torch.full((2,), 2.0))


def test_what_one_branch_reads_is_given_to_both() -> None:
    def summed(graph: fx.Graph, x: fx.Node, y: fx.Node) -> fx.Node:
        return graph.call_function(aten.add.Tensor, (x, y))

    module = choosing(branch(doubled, 1), branch(summed, 2))
    drop_unread_operands(module)
    (node,) = conditions(module.graph)
    assert len(operands(node)) == 2


@pytest.mark.parametrize("taken", [True, False])
def test_what_branches_hold_becomes_inputs(taken: bool) -> None:
    module = choosing(holding(5.0), holding(7.0))
    (want,) = module(torch.tensor(taken), torch.ones(2), torch.ones(2))
    held = lift_constants(module)
    assert [place.op for place in held] == ["placeholder"] * 2
    assert list(held) == placeholders(module.graph)[3:]
    assert all(
        n.target in ("then", "other") for n in module.graph.find_nodes(op="get_attr")
    )
    given = (torch.tensor(taken), torch.ones(2), torch.ones(2), *held.values())
    (got,) = recompiled(module)(*given)
    assert torch.equal(got, want)
    assert not lift_constants(module)


def test_a_copy_has_branches_of_its_own() -> None:
    program = run_passes(
        cached(tiny(), graphcache.first_block_cache(0.1)), conditional_pipeline()
    )
    before = str(program)
    copied = copy_whole(program.module)
    assert not {id(p) for p in parts(copied)} & {id(p) for p in parts(program.module)}
    for part in parts(copied):
        for node in part.graph.find_nodes(op="call_function", target=aten.relu.default):
            node.target = aten.neg.default
    assert str(program) == before


def run(program: Program, values: list[Tensor]) -> list[Tensor]:
    """What the eager backend makes of a program."""
    with torch.no_grad():
        return list(EagerBackend().compile(program, {})(list(values)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "config"),
    [("cogvideox", GUIDED), ("wan", graphcache.seacache(0.3))],
    ids=["fastercache", "seacache"],
)
def test_spectral_conditions_are_real_ones(model: str, config: object) -> None:
    inputs = first_inputs(ZOO[model])
    program = graphcache.trace(make(ZOO[model]), config, **inputs)
    (program,) = graphcache.variants(program, config, "conditional")
    assert program.stage is Stage.CONDITIONAL
    before = str(program)
    result = SpectralMatmul().run(program)
    assert str(program) == before
    assert result.edits > 0
    rewritten = run_passes(program, [SpectralMatmul()])
    assert SpectralMatmul().run(rewritten).edits == 0
    for part in parts(rewritten.module):
        assert not spectral_nodes(part.graph)
        assert not any(is_complex(node) for node in conditions(part.graph))
    assert pass_reals(copy_whole(rewritten.module)) == 0
    for taken in (True, False):
        values = [
            torch.full_like(value, taken) if value.dtype == torch.bool else value
            for value in values_of(program)
        ]
        got, want = run(rewritten, values), run(program, values)
        assert worst_difference(got, want) <= 1e-5
