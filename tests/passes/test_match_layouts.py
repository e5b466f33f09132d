"""match-layouts: what is stored lies as its buffer does, whatever it came from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import Attention, HoldResidual, Interval, LinearExtrapolation, Policy
from graphcache.lowering import lower
from graphcache.passes.branches import same_layout
from graphcache.passes.match_layouts import MatchLayouts, propagated
from graphcache.policy import Modules
from graphcache.program import InputKind, fake_value, placeholders, segments
from tests.models import same
from tests.zoo import ZOO, denoise, first_inputs, make

POLICIES = {
    "history": [Policy("p", Attention(), Interval(2), LinearExtrapolation(0.5))],
    "mixture": [
        Policy("p", Attention(), Interval(2)),
        Policy("q", Modules((r".*\.ff",)), Interval(3), HoldResidual()),
    ],
    "dynamic": [
        Policy("p", Attention(), Interval(2)),
        graphcache.first_block_cache(0.5),
    ],
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("model", ["cogvideox", "flux"])
def test_every_segment_stores_what_every_other_reads(name: str, model: str) -> None:
    config = POLICIES[name]
    tiny = ZOO[model]
    program = graphcache.trace(make(tiny), config, **first_inputs(tiny))
    by_name = {policy.name: policy for policy in config}
    policies = [by_name[predicate] for predicate in program.predicates]
    declared: dict[str, Any] = {}
    stored: list[tuple[str, Any]] = []
    for tree in lower(program, policies).routes.values():
        for part in segments(tree):
            nodes = {node.name: node for node in placeholders(part.graph)}
            for entry in part.inputs_of(InputKind.BUFFER):
                fake = fake_value(nodes[entry.name])
                assert same_layout(declared.setdefault(entry.target, fake), fake)
            outputs = propagated(part)
            stored += zip(part.stores, outputs.stores, strict=True)
            for live, fake in zip(part.lives, outputs.lives, strict=True):
                declared[live] = fake
    assert stored
    assert all(same_layout(declared[buffer], fake) for buffer, fake in stored)


class Turned(nn.Module):
    """A feed-forward whose output lies as its input does."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        """f32[2, 3, 4] to the same."""
        return (hidden_states * timestep[:, None, None],)


def test_a_store_of_another_layout_is_copied_once() -> None:
    config = Policy("p", graphcache.Model(), Interval(2), HoldResidual())
    module = Turned().eval()
    inputs = {"hidden_states": torch.randn(2, 3, 4), "timestep": torch.ones(2)}
    program = graphcache.trace(module, config, **inputs)
    compute, _ = graphcache.variants(program, config)
    (store,) = compute.stores
    strided = torch.empty(2, 4, 3).transpose(1, 2)
    edited = MatchLayouts({store: strided}).run(compute)
    assert edited.edits == 1
    assert propagated(edited.program).stores[0].stride() == strided.stride()
    assert MatchLayouts({store: strided}).run(edited.program).edits == 0
    assert MatchLayouts({store: torch.empty(2, 3, 4)}).run(compute).edits == 0


@pytest.mark.slow
def test_inductor_takes_a_history_of_views_and_predictions() -> None:
    tiny, config = ZOO["cogvideox"], POLICIES["history"]
    runs = [
        denoise(
            graphcache.compile(make(tiny), config, backend=backend, progress=False),
            tiny,
            6,
        )
        for backend in ("eager", "inductor")
    ]
    for got, want in zip(*runs, strict=True):
        assert torch.dist(got, want) <= 1e-4 * want.norm()
    assert not same(runs[0], denoise(make(tiny), tiny, 6))
