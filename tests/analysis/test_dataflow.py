"""Dataflow: what reaches what."""

from __future__ import annotations

import operator

from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from graphcache.analysis.dataflow import (
    ancestors,
    descendants,
    is_convex,
    operands_of,
    results_of,
    sort_topologically,
)


def diamond() -> dict[str, fx.Node]:
    """x feeds a and b, which feed c."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(operator.neg, (x,))
    b = graph.call_function(operator.pos, (x,))
    c = graph.call_function(operator.add, (a, b))
    graph.output(c)
    return {"x": x, "a": a, "b": b, "c": c}


def test_cones_and_edges() -> None:
    n = diamond()
    assert ancestors([n["a"]]) == {n["x"], n["a"]}
    assert n["c"] in descendants([n["a"]])
    assert n["b"] not in descendants([n["a"]])
    assert operands_of([n["a"], n["c"]]) == [n["x"], n["b"]]
    assert results_of([n["x"], n["a"]]) == [n["x"], n["a"]]


def test_a_set_that_a_path_leaves_and_enters_again_is_not_convex() -> None:
    n = diamond()
    assert is_convex([n["a"], n["b"], n["c"]])
    assert not is_convex([n["x"], n["a"], n["c"]])


@given(st.permutations(range(6)))
def test_sorting_puts_operands_first_and_keeps_what_is_in_order(
    order: list[int],
) -> None:
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for index in range(6):
        nodes.append(graph.call_function(operator.add, (nodes[-1], index)))
    graph.output(nodes[-1])
    for index in order:
        graph.output_node().prepend(nodes[1 + index])
    sort_topologically(graph)
    assert list(graph.nodes)[:-1] == nodes
    graph.lint()
