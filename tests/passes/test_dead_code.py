"""dead-code."""

from __future__ import annotations

import torch

from graphcache.ops import is_pure
from graphcache.passes.dead_code import DeadCode
from graphcache.passes.manager import run_passes
from graphcache.program import Program, output_node
from tests.models import tiny
from tests.programs import cached, ops, source


def cut_before_attention() -> Program:
    """A program that returns what its attention would have read."""
    program = source(tiny(depth=1)).copy()
    norm = next(node for node in program.graph.nodes if node.name == "layer_norm")
    output_node(program.graph).args = ((norm,),)
    return program


def test_unread_attention_takes_its_projections_and_weights_with_it() -> None:
    before = cut_before_attention()
    result = DeadCode().run(before)
    assert ops(result.program) == ["_assert_tensor_metadata", "layer_norm"]
    assert "scaled_dot_product_attention" in ops(before)
    weights = [entry.target for entry in result.program.inputs[:-3]]
    assert weights == ["blocks.0.norm.weight", "blocks.0.norm.bias"]
    sizes = [len(list(side.graph.nodes)) for side in (before, result.program)]
    assert result.edits == sizes[0] - sizes[1]


def test_arguments_stay_until_lowering() -> None:
    kept = DeadCode().run(cut_before_attention()).program.inputs[-3:]
    assert [entry.target for entry in kept] == [
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
    ]


def test_random_attention_is_kept() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    attention = torch.ops.aten.scaled_dot_product_attention.default
    silent = graph.call_function(attention, (x, x, x))
    random = graph.call_function(attention, (x, x, x), {"dropout_p": 0.1})
    positional = graph.call_function(attention, (x, x, x, None, 0.1))
    assert is_pure(silent)
    assert not is_pure(random)
    assert not is_pure(positional)


def test_writes_and_assertions_are_not_pure() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    aten = torch.ops.aten
    assert not is_pure(graph.call_function(aten.copy_.default, (x, x)))
    assert not is_pure(graph.call_function(aten._assert_async.default, (x,)))
    assert not is_pure(graph.call_function(aten.rand_like.default, (x,)))
    assert not is_pure(x)


def test_is_idempotent_and_keeps_live_code() -> None:
    once = run_passes(cached(tiny()), [DeadCode()])
    assert DeadCode().run(once).edits == 0
    live = source(tiny())
    assert ops(DeadCode().run(live).program) == ops(live)
