"""Attention that is given functions: they go where the attention goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import graphcache
from graphcache import first_block_cache, never_reuse, pyramid_attention_broadcast
from graphcache.capture.labels import scopes
from graphcache.ops import functions_of, is_flex_attention
from graphcache.passes.find_regions import FindRegions
from graphcache.program import Program
from tests.models import HEADS, TinyAttention, run_loop, same, tiny
from tests.programs import cached, source

WINDOW = pyramid_attention_broadcast(spatial=2)


class FlexAttention(TinyAttention):
    """The same attention, by flex_attention, over near tokens and with a bias."""

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """f32[b, n, 8] to f32[b, n, 8]."""
        query, key, value = (
            layer(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        reach = torch.arange(hidden.shape[1], device=hidden.device) + 1

        def near(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q - k).abs() <= reach[q]

        def biased(
            score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor
        ) -> Tensor:
            return score + (q - k) * 0.1

        size = hidden.shape[1]
        mask = create_block_mask(near, None, None, size, size, hidden.device.type)
        out = flex_attention(query, key, value, score_mod=biased, block_mask=mask)
        assert isinstance(out, Tensor)
        return self.to_out(out.transpose(1, 2).flatten(2))


def flex(depth: int = 2) -> Any:
    return tiny(depth=depth, attention=FlexAttention)


def attentions(program: Program) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if is_flex_attention(node)]


def test_each_attention_has_functions_of_its_own_and_is_a_region() -> None:
    program = source(flex())
    nodes = attentions(program)
    assert len(nodes) == 2
    held = [part for node in nodes for part in functions_of(node)]
    assert len(set(held)) == 4
    for node in nodes:
        near = (node, *functions_of(node))
        assert all(scopes(part) == scopes(node) for part in functions_of(node))
        assert all(part.next in near for part in functions_of(node))
    regions = FindRegions().run(program).program.regions
    found = [(r.name, r.flow) for r in regions if r.kind == "attention"]
    assert found == [("blocks.0.attn1", "self"), ("blocks.1.attn1", "self")]


def test_a_reused_attention_takes_its_functions_with_it() -> None:
    program = cached(flex(), WINDOW)
    assert not attentions(program)
    compute, reuse = graphcache.variants(program, WINDOW)
    assert len(attentions(compute)) == 2
    assert not attentions(reuse)
    for variant in (compute, reuse):
        wanted = {part.target for n in attentions(variant) for part in functions_of(n)}
        assert {name for name, _ in variant.module.named_children()} == wanted


def test_the_text_names_the_functions() -> None:
    text = str(source(flex(depth=1)))
    assert "flex_attention(%transpose, %transpose_1, %transpose_2, sdpa_score0" in text


def test_never_reuse_is_the_module_bit_for_bit() -> None:
    subject = graphcache.compile(flex(), never_reuse(), backend="eager")
    assert same(run_loop(subject, 3), run_loop(flex(), 3))


@pytest.mark.parametrize(
    ("config", "lowering"),
    [
        (WINDOW, "auto"),
        (WINDOW, "conditional"),
        (first_block_cache(0.5), "auto"),
    ],
)
def test_every_lowering_agrees_with_the_reference(config: Any, lowering: str) -> None:
    subject = graphcache.compile(flex(), config, backend="eager", lowering=lowering)
    reference = graphcache.compile(flex(), config, backend="reference")
    assert same(run_loop(subject, 6), run_loop(reference, 6))
    assert subject.cache_stats.computed == reference.cache_stats.computed
    assert any(subject.cache_stats.reused.values())
