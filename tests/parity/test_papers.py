"""Methods that diffusers lacks, against plain Python written from their papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import nn

import graphcache
from graphcache import (
    SmoothCacheSchedule,
    dbcache,
    fora,
    smoothcache,
    step_mask,
    teacache,
    tgate,
)
from graphcache.policy import Attention, FeedForward
from tests.models import same
from tests.parity.compare import Run, compiled
from tests.parity.settings import DB_CACHE, TEA
from tests.parts import attentions
from tests.references import (
    ReferenceRun,
    by_reference,
    db_cache,
    smooth_cache,
    t_gate,
    tea_cache,
    trunk_mask,
)
from tests.references import fora as fora_reference
from tests.references import step_mask as step_mask_reference
from tests.references.db_cache import Limits
from tests.zoo import ZOO, denoise, make

Method = Callable[[nn.Module], Any]


def both(
    name: str, config: object, method: Method, steps: int, **options: Any
) -> tuple[Run, ReferenceRun]:
    """The compiled run and the reference's."""
    ours = compiled(name, lambda _: config, steps, **options)
    return ours, by_reference(ZOO[name], method, steps)


def assert_same(
    name: str,
    config: object,
    method: Method,
    policy: str,
    steps: int = 12,
    path: str | None = None,
    lowerings: Sequence[str] = ("auto",),
) -> None:
    """The same computed steps, and equal bits."""
    reference = by_reference(ZOO[name], method, steps)
    for lowering in lowerings:
        ours = compiled(name, lambda _: config, steps, lowering=lowering)
        assert ours.steps(policy) == reference.steps(path)
        assert same(ours.outputs, reference.outputs)


@pytest.mark.parametrize("name", TEA)
def test_teacache(name: str) -> None:
    threshold = TEA[name]
    assert_same(
        name, teacache(threshold), lambda m: tea_cache(m, threshold), "teacache"
    )


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_teacache_rescales_by_a_polynomial_and_computes_the_last_step(
    name: str,
) -> None:
    coefficients = (0.4, -0.2, 0.7, 0.05)
    assert_same(
        name,
        teacache(0.9, coefficients, steps=28),
        lambda m: tea_cache(m, 0.9, coefficients, last_step=27),
        "teacache",
        steps=28,
        lowerings=("auto", "conditional"),
    )


@pytest.mark.parametrize("name", DB_CACHE)
def test_dbcache(name: str) -> None:
    head, tail, threshold = DB_CACHE[name]
    if name == "flux2":
        pytest.skip("its tail is on joined streams: refused, and tested below")
    assert_same(
        name,
        dbcache(head, tail, threshold=threshold, warmup=2),
        lambda m: db_cache(m, threshold, head=head, tail=tail, limits=Limits(warmup=2)),
        "dbcache",
    )


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ({"max_run": 2}, Limits(max_run=2)),
        ({"max_reused": 4}, Limits(max_cached=4)),
        ({"mask": [1, 0, 0, 1] * 7}, Limits(mask=[1, 0, 0, 1] * 7)),
    ],
    ids=["max_run", "max_reused", "mask"],
)
@pytest.mark.parametrize("name", ["flux", "qwenimage"])
def test_dbcache_limits(name: str, options: dict[str, Any], limits: Limits) -> None:
    threshold = 2 * DB_CACHE[name][2]
    assert_same(
        name,
        dbcache(1, 1, threshold=threshold, warmup=0, **options),
        lambda m: db_cache(m, threshold, head=1, tail=1, limits=limits),
        "dbcache",
        steps=28,
        lowerings=("auto", "conditional"),
    )


def test_a_tail_on_joined_streams_is_refused() -> None:
    with pytest.raises(graphcache.PolicyError, match="continues no stream"):
        compiled("flux2", lambda _: dbcache(1, 1), 2)


@pytest.mark.parametrize("name", [name for name in ZOO if name != "wan_vace"])
def test_fora(name: str) -> None:
    assert_same(name, fora(3), lambda m: fora_reference(m, 3), "fora")


@pytest.mark.parametrize("name", ["cogvideox", "wan", "pixart", "flux"])
def test_smoothcache(name: str) -> None:
    module = make(ZOO[name])
    kinds = {path.rpartition(".")[2] for path in attentions(module)}
    schedule = {kind: [1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1] for kind in sorted(kinds)}
    feed_forward = "ffn" if name == "wan" else "ff"
    schedule[feed_forward] = [1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    config = smoothcache(SmoothCacheSchedule(schedule))
    ours, reference = both(name, config, lambda m: smooth_cache(m, schedule), 12)
    assert same(ours.outputs, reference.outputs)
    for kind, row in schedule.items():
        assert ours.steps(kind) == [step for step, value in enumerate(row) if value]


@pytest.mark.parametrize("settings", [(10, 5, 2), (6, 3, 0), (4, 1, 1)])
@pytest.mark.parametrize("name", ["pixart", "wan", "allegro"])
def test_tgate(name: str, settings: tuple[int, int, int]) -> None:
    config = tgate(*settings)
    ours, reference = both(name, config, lambda m: t_gate(m, *settings), 20)
    assert same(ours.outputs, reference.outputs)
    assert ours.steps("cross") == list(range(settings[0]))


@pytest.mark.parametrize("name", ["cogvideox", "flux", "hunyuan_video"])
def test_masks(name: str) -> None:
    mask = [1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1]
    config = step_mask(mask)
    assert_same(name, config, lambda m: trunk_mask(m, mask), "mask")
    paths = [p for p in attentions(make(ZOO[name])) if "refiner" not in p]
    attention = step_mask(mask, Attention(exclude=("refiner",)))
    ours, reference = both(
        name,
        attention,
        lambda m: step_mask_reference(m, dict.fromkeys(paths, mask)),
        12,
    )
    assert same(ours.outputs, reference.outputs)


def test_mixtures_are_one_graph_and_each_part_keeps_its_schedule() -> None:
    """Attention interval, feed-forward mask and a skipped tail together."""
    every, rows = [1, 0] * 6, [1, 0, 0] * 4
    mixture = [
        step_mask(every, Attention(), name="attention"),
        step_mask(rows, FeedForward(), name="feed_forward"),
        step_mask([1, 1, 1, 0] * 3, name="tail"),
    ]
    paths = {path: every for path in attentions(make(ZOO["flux"]))} | dict.fromkeys(
        [f"transformer_blocks.{i}.{ff}" for i in (0, 1) for ff in ("ff", "ff_context")],
        rows,
    )
    ours = compiled("flux", lambda _: mixture, 12)
    expected = _mixed_reference(paths, [1, 1, 1, 0] * 3)
    assert same(ours.outputs, expected)
    assert ours.module.cache_stats.host_reads == 0


def _mixed_reference(paths: dict[str, list[int]], tail: list[int]) -> list[Any]:
    module = make(ZOO["flux"])
    with step_mask_reference(module, paths), trunk_mask(module, tail):
        return denoise(module, ZOO["flux"], 12)
