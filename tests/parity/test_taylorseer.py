"""TaylorSeer against diffusers' hooks."""

from __future__ import annotations

import pytest
import torch
from diffusers import TaylorSeerCacheConfig

from tests.parity.compare import assert_parity, close, compiled
from tests.parity.hooks import by_hooks, caching
from tests.parity.settings import LAYERS, taylor_seer
from tests.parts import attentions, feed_forwards
from tests.zoo import ZOO, make

# A feed-forward that is called once a stream has one history in the hooks.
NAMES = [name for name in LAYERS if name != "mochi"]
LITE = [
    name
    for name in ZOO
    if hasattr(make(ZOO[name]), "proj_out") and name not in ("sd3", "latte", "pixart")
]


def layers(name: str) -> list[str]:
    module = make(ZOO[name])
    known = {*attentions(module), *feed_forwards(module)}
    (pattern,) = LAYERS[name]
    import re

    return [path for path in known if re.fullmatch(pattern, path)]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_hooks(name: str) -> None:
    assert_parity(name, taylor_seer(name), 12, "taylorseer", layers(name))


@pytest.mark.parametrize("order", [0, 2, 3])
@pytest.mark.parametrize("name", ["cogvideox", "flux"])
def test_equals_the_hooks_at_any_order(name: str, order: int) -> None:
    hooks = taylor_seer(
        name, max_order=order, cache_interval=3, disable_cache_before_step=4
    )
    assert_parity(
        name,
        hooks,
        28,
        "taylorseer",
        layers(name),
        lowerings=("auto", "conditional"),
    )


@pytest.mark.parametrize("name", ["wan", "qwenimage"])
def test_equals_the_hooks_with_factors_of_lower_precision(name: str) -> None:
    hooks = taylor_seer(
        name, taylor_factors_dtype=torch.bfloat16, disable_cache_after_step=20
    )
    assert_parity(name, hooks, 28, "taylorseer", layers(name))


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_default_patterns_are_those_of_diffusers(name: str) -> None:
    hooks = caching(lambda _: TaylorSeerCacheConfig())
    paths = [path for path in attentions(make(ZOO[name])) if path.endswith("attn")]
    assert_parity(name, hooks, 28, "taylorseer", paths)


@pytest.mark.parametrize("name", LITE)
def test_lite_equals_the_hooks(name: str) -> None:
    hooks = caching(
        lambda _: TaylorSeerCacheConfig(
            use_lite_mode=True, taylor_factors_dtype=torch.float32
        )
    )
    expected, (run,) = assert_parity(name, hooks, 12, "taylorseer", ["proj_out"])
    assert len(run.steps("taylorseer")) < len(expected.outputs)


@pytest.mark.slow
def test_inductor_agrees() -> None:
    hooks = taylor_seer("flux", max_order=2)
    expected = by_hooks(ZOO["flux"], hooks, 12)
    run = compiled("flux", hooks.config, 12, backend="inductor")
    assert close(run.outputs, expected.outputs, 1e-4)
    assert run.module.cache_stats.graphs_compiled == 2
