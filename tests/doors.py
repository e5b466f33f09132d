"""The two doors: one module behind torch.compile and one behind graphcache.compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import graphcache
from graphcache.backends.dynamo import statistics
from graphcache.runtime.stats import Statistics


def behind_dynamo(
    module: nn.Module, config: object, backend: str = "eager", **options: Any
) -> Any:
    """The module behind torch.compile, which finds the backend by its name."""
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(
        module,
        backend="graphcache",
        fullgraph=True,
        options={"config": config, "backend": backend, "progress": False, **options},
    )


def both(
    make: Callable[[], nn.Module],
    config: Callable[[], object],
    run: Callable[[nn.Module], Sequence[Tensor]],
    **options: Any,
) -> tuple[Statistics, Statistics]:
    """Run both doors; their outputs are equal bit for bit, and Dynamo traced once."""
    options = {"backend": "eager", **options}
    dynamo = behind_dynamo(make(), config(), **options)
    direct = graphcache.compile(make(), config(), progress=False, **options)
    got, want = run(dynamo), run(direct)
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    return statistics(dynamo), direct.cache_stats


def rows(stats: Statistics, *, named: bool = True) -> list[tuple[Any, ...]]:
    """What was decided at every call, with the name of its stream if it has one."""
    return [
        (
            record.stream if named else "",
            record.index,
            record.timestep,
            record.computed,
            record.scores,
        )
        for record in stats.steps
    ]
