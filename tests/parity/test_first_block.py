"""First-block cache against diffusers' hooks, and where those are wrong."""

from __future__ import annotations

import pytest
from diffusers import FirstBlockCacheConfig

from tests.models import same
from tests.parity.compare import assert_parity, close, compiled, last_block
from tests.parity.hooks import by_hooks, caching
from tests.parity.settings import FIRST_BLOCK, NO_FIRST_BLOCK, first_block
from tests.references import by_reference, db_cache
from tests.zoo import ZOO, denoise, make

INJECTED = ("wan_vace", "flux_controlnet", "flux_controlnet_moving")
EXACT = [name for name in FIRST_BLOCK if name not in INJECTED]


@pytest.mark.parametrize("name", EXACT)
def test_equals_the_hooks(name: str) -> None:
    assert_parity(
        name,
        first_block(name),
        12,
        "first_block",
        [last_block(name)],
        lowerings=("auto", "conditional"),
    )


@pytest.mark.parametrize("steps", [28, 50])
@pytest.mark.parametrize("name", ["cogvideox", "flux", "wan"])
def test_equals_the_hooks_over_longer_loops(name: str, steps: int) -> None:
    assert_parity(name, first_block(name), steps, "first_block", [last_block(name)])


@pytest.mark.parametrize("factor", [0.5, 1.3])
@pytest.mark.parametrize("name", ["ltx", "qwenimage"])
def test_equals_the_hooks_at_other_thresholds(name: str, factor: float) -> None:
    threshold = FIRST_BLOCK[name] * factor
    hooks = caching(lambda _: FirstBlockCacheConfig(threshold=threshold))
    assert_parity(name, hooks, 12, "first_block", [last_block(name)])


@pytest.mark.parametrize("name", INJECTED)
def test_what_enters_between_blocks_is_applied_once(name: str) -> None:
    threshold = FIRST_BLOCK[name]
    run = compiled(name, first_block(name).config, 12)
    reference = by_reference(
        ZOO[name], lambda module: db_cache(module, threshold, head=1), 12
    )
    assert run.steps("first_block") == reference.steps()
    assert same(run.outputs, reference.outputs)
    hooks = by_hooks(ZOO[name], first_block(name), 12)
    assert not same(hooks.outputs, reference.outputs)


@pytest.mark.parametrize("name", NO_FIRST_BLOCK)
def test_runs_where_the_hooks_cannot(name: str) -> None:
    def config(_: object) -> FirstBlockCacheConfig:
        return FirstBlockCacheConfig(threshold=0.8)

    run = compiled(name, config, 12)
    reference = by_reference(
        ZOO[name], lambda module: db_cache(module, 0.8, head=1), 12
    )
    assert run.steps("first_block") == reference.steps()
    assert same(run.outputs, reference.outputs)


@pytest.mark.parametrize("lowering", ["split", "conditional"])
@pytest.mark.parametrize("name", ["flux", "cogvideox"])
def test_threshold_zero_is_the_module(name: str, lowering: str) -> None:
    run = compiled(
        name, lambda _: FirstBlockCacheConfig(threshold=0.0), 6, lowering=lowering
    )
    assert same(run.outputs, denoise(make(ZOO[name]), ZOO[name], 6))


def test_an_infinite_threshold_computes_the_first_step_alone() -> None:
    run = compiled("flux", lambda _: FirstBlockCacheConfig(threshold=float("inf")), 6)
    assert run.steps("first_block") == [0]
    assert run.module.cache_stats.host_reads == 5


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["split", "conditional"])
def test_inductor_agrees_and_compiles_once(lowering: str) -> None:
    hooks = by_hooks(ZOO["ltx"], first_block("ltx"), 12)
    run = compiled(
        "ltx", first_block("ltx").config, 12, backend="inductor", lowering=lowering
    )
    assert run.steps("first_block") == hooks.steps(last_block("ltx"))
    assert close(run.outputs, hooks.outputs)
    graphs = run.module.cache_stats.graphs_compiled
    assert graphs == {"split": 3, "conditional": 1}[lowering]
    run.module.cache_thresholds["first_block"] = 0.0
    denoise(run.module, ZOO["ltx"], 4)
    assert run.module.cache_stats.graphs_compiled == graphs
