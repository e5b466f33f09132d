"""Every kind of method under Inductor: what eager gives, and nothing compiled twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

import graphcache
from graphcache import (
    Attention,
    Interval,
    Policy,
    TaylorResidual,
    dbcache,
    first_block_cache,
    teacache,
)
from tests.models import run_loop, tiny

MIXTURE = [Policy("attention", Attention(), Interval(2)), first_block_cache(0.05)]
CASES: dict[str, tuple[Callable[[], object], str, int]] = {
    "dbcache": (
        lambda: dbcache(1, 1, threshold=0.2, warmup=2, predictor=TaylorResidual(1)),
        "dbcache",
        3,
    ),
    "teacache": (lambda: teacache(0.2), "teacache", 3),
    # A head and a computing tail for each of the two decisions about attention; the
    # tail that reuses is one graph.
    "mixture": (lambda: MIXTURE, "first_block", 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inductor_is_eager_and_compiles_before_the_first_step(name: str) -> None:
    config, policy, graphs = CASES[name]
    torch._dynamo.reset()
    counters.clear()
    runs = {}
    for backend in ("eager", "inductor"):
        subject = graphcache.compile(
            tiny(depth=3), config(), backend=backend, progress=False
        )
        first = run_loop(subject, 9)
        decisions = [r.computed[policy] for r in subject.cache_stats.steps]
        subject.cache_thresholds[policy] = 0.0
        exact = run_loop(subject, 4)
        assert subject.cache_stats.graphs_compiled == graphs
        assert subject.cache_stats.captures == 1
        runs[backend] = first, decisions, exact
    assert runs["eager"][1] == runs["inductor"][1]
    assert set(runs["eager"][1]) == {True, False}
    for got, want in zip(
        (*runs["inductor"][0], *runs["inductor"][2]),
        (*runs["eager"][0], *runs["eager"][2]),
        strict=True,
    ):
        assert torch.dist(got, want) <= 1e-4 * want.norm()
    assert not counters["graph_break"]
    assert not counters["stats"].get("unique_graphs")
