"""MagCache against diffusers' hooks, and where those are wrong."""

from __future__ import annotations

import pytest

from tests.models import same
from tests.parity.compare import assert_parity, compiled, last_block
from tests.parity.hooks import by_hooks
from tests.parity.settings import MAG, mag
from tests.references import by_reference, trunk_mask
from tests.zoo import ZOO

INJECTED = ("wan_vace", "flux_controlnet", "flux_controlnet_moving")
EXACT = [name for name in MAG if name not in INJECTED]


@pytest.mark.parametrize("name", EXACT)
def test_equals_the_hooks(name: str) -> None:
    assert_parity(name, mag(name, 12), 12, "magcache", [last_block(name)])


@pytest.mark.parametrize("steps", [28, 50])
@pytest.mark.parametrize("name", ["cogvideox", "flux"])
def test_equals_the_hooks_over_longer_loops(name: str, steps: int) -> None:
    hooks = mag(name, steps, threshold=0.8, max_skip_steps=2, retention_ratio=0.1)
    assert_parity(
        name,
        hooks,
        steps,
        "magcache",
        [last_block(name)],
        lowerings=("auto", "conditional"),
    )


@pytest.mark.parametrize("name", INJECTED)
def test_what_enters_between_blocks_is_applied_once(name: str) -> None:
    hooks = mag(name, 12)
    expected = by_hooks(ZOO[name], hooks, 12)
    computed = expected.steps(last_block(name))
    run = compiled(name, hooks.config, 12)
    assert run.steps("magcache") == computed
    mask = [int(step in computed) for step in range(12)]
    reference = by_reference(ZOO[name], lambda module: trunk_mask(module, mask), 12)
    assert same(run.outputs, reference.outputs)
    assert not same(expected.outputs, reference.outputs)


def test_a_static_schedule_reads_nothing() -> None:
    run = compiled("flux", mag("flux", 12).config, 12)
    assert run.module.cache_stats.host_reads == 0
