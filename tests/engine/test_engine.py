"""An engine is the module that it was exported from: bit for bit, step for step.

Its programs are run by the eager backend here: what differs is the engine's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphcache
from graphcache import (
    Attention,
    GuidanceConfig,
    Interval,
    Policy,
    SmoothCacheSchedule,
    TaylorResidual,
    dbcache,
    fastercache,
    first_block_cache,
    magcache,
    never_reuse,
    pyramid_attention_broadcast,
    seacache,
    smoothcache,
    step_mask,
    taylorseer,
    teacache,
    tgate,
)
from graphcache.engine import export, load
from graphcache.policy.fastercache import high_weight, low_weight
from tests.engine.engines import compiled, engine_of, steps
from tests.models import run_loop, same, tiny
from tests.test_laws import dynamic, models, static
from tests.zoo import ZOO, denoise, denoise_guided, make

STEPS = 9
BOTH = (True, False)
pytestmark = pytest.mark.usefixtures("memory")

ON_TINY: dict[str, Callable[[], object]] = {
    "never": never_reuse,
    "pab": lambda: pyramid_attention_broadcast(spatial=2, cross=3),
    "first_block": lambda: first_block_cache(0.2),
    "endless": lambda: first_block_cache(float("inf")),
    "dbcache": lambda: dbcache(
        1, 1, threshold=0.2, warmup=2, predictor=TaylorResidual(1)
    ),
    "dbcache_mask": lambda: dbcache(
        1, threshold=0.2, warmup=1, mask=[1, 0, 0, 1, 0, 0, 0, 0, 1]
    ),
    "taylorseer": taylorseer,
    "magcache": lambda: magcache([1.0] + [0.97] * 8),
    "teacache": lambda: teacache(0.2),
    "teacache_hoisted": lambda: teacache(3.0, timestep_only=True),
    "mask": lambda: step_mask([1, 0, 0, 1, 0, 0, 1, 0, 1]),
    "tgate": lambda: tgate(4, 2, 1),
    "smoothcache": lambda: smoothcache(
        SmoothCacheSchedule(
            {"attn1": [1, 0, 1, 1, 0, 0, 1, 0, 1], "attn2": [1, 1, 0, 0, 1, 0, 1, 0, 1]}
        )
    ),
    "fastercache": lambda: fastercache(weight=low_weight(0.3, (0, 500))),
    "mixture": lambda: [Policy("a", Attention(), Interval(2)), first_block_cache(0.2)],
}


def check_on_tiny(config: object, path: Path, **kwargs: Any) -> set[bool]:
    """Compare; returns what was decided."""
    subject = compiled(config, cross=True, **kwargs)
    engine = engine_of(subject, path)
    for _ in range(2):
        wanted = run_loop(subject, STEPS)
        assert same(run_loop(engine, STEPS), wanted)
        subject._reset_stateful_cache()
        engine._reset_stateful_cache()
    assert steps(engine) == steps(subject)
    for name in ("computed", "reused", "host_reads", "resets", "planned_bytes"):
        assert getattr(engine.cache_stats, name) == getattr(subject.cache_stats, name)
    assert engine.cache_stats.regions == subject.cache_stats.regions
    return {said for step in steps(engine) for said in step.computed.values()}


@pytest.mark.parametrize("name", ON_TINY)
def test_every_method(name: str, tmp_path: Path) -> None:
    said = check_on_tiny(ON_TINY[name](), tmp_path)
    assert said == ({True} if name == "never" else set(BOTH))


@pytest.mark.parametrize("name", ["first_block", "dbcache", "mixture"])
def test_conditional(name: str, tmp_path: Path) -> None:
    said = check_on_tiny(ON_TINY[name](), tmp_path, lowering="conditional")
    assert said == set(BOTH)


@pytest.mark.parametrize(
    ("compiled_for", "exported_for"),
    [("auto", "conditional"), ("conditional", "auto"), ("conditional", None)],
)
def test_another_lowering_than_the_modules(
    compiled_for: str, exported_for: str | None, tmp_path: Path
) -> None:
    policies = [Policy("a", Attention(), Interval(2)), ON_TINY["teacache_hoisted"]()]
    subject = compiled(policies, lowering=compiled_for)
    options = {"backend": "memory", "lowering": exported_for, "progress": False}
    engine = load(export(subject, tmp_path / "engine", **options))
    assert same(run_loop(engine, STEPS), run_loop(subject, STEPS))
    assert [step.computed for step in steps(engine)] == [
        step.computed for step in steps(subject)
    ]
    (capture,) = engine.manifest.captures
    assert capture.lowering == {"auto": "specialize"}.get(
        str(exported_for), "conditional"
    )


FEW = settings(max_examples=3, deadline=None, derandomize=True)


@pytest.mark.slow
@FEW
@given(models, st.one_of(static, dynamic))
def test_every_policy(
    tmp_path_factory: pytest.TempPathFactory, kwargs: dict[str, Any], policy: Policy
) -> None:
    subject = graphcache.compile(tiny(**kwargs), policy, backend="eager")
    wanted = run_loop(subject, STEPS)
    engine = engine_of(subject, tmp_path_factory.mktemp("engine"))
    assert same(run_loop(engine, STEPS), wanted)
    assert steps(engine) == steps(subject)


def guided() -> object:
    guidance = GuidanceConfig(
        3, (-1, 801), "BFCHW", low_weight(1.2, (99, 901)), high_weight(1.3, (-1, 301))
    )
    return fastercache(2, window=(-1, 901), guidance=guidance)


@pytest.mark.slow
def test_fastercache_with_guidance(tmp_path: Path) -> None:
    model = ZOO["cogvideox"]
    subject = graphcache.compile(make(model), guided(), backend="eager")
    wanted = denoise_guided(subject, model, STEPS)
    engine = engine_of(subject, tmp_path)
    assert same(denoise_guided(engine, model, STEPS), wanted)
    assert steps(engine) == steps(subject)
    assert {step.computed["guidance"] for step in steps(engine)} == set(BOTH)


ON_ZOO: dict[str, Callable[[], object]] = {
    "cogvideox": lambda: pyramid_attention_broadcast(spatial=2),
    "flux": lambda: teacache(0.5, timestep_only=True),
    "wan": lambda: seacache(0.4),
    "hunyuan_video": lambda: dbcache(1, 1, threshold=0.7, warmup=1),
    "wan_vace": lambda: first_block_cache(0.86),
    "mochi": lambda: first_block_cache(0.84),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_ZOO)
def test_transformers_of_diffusers(name: str, tmp_path: Path) -> None:
    model = ZOO[name]
    subject = graphcache.compile(make(model), ON_ZOO[name](), backend="eager")
    wanted = denoise(subject, model, STEPS, placed=True)
    engine = engine_of(subject, tmp_path)
    assert same(denoise(engine, model, STEPS, placed=True), wanted)
    assert steps(engine) == steps(subject)
    said = {value for step in steps(engine) for value in step.computed.values()}
    assert said == set(BOTH)
