"""SeaCache against diffusers' hooks."""

from __future__ import annotations

import pytest
from diffusers import SeaCacheConfig

from tests.parity.compare import assert_parity, last_block
from tests.parity.hooks import caching
from tests.parity.settings import sea


def config(**options: object) -> object:
    return caching(lambda _: SeaCacheConfig(**options))


@pytest.mark.parametrize("steps", [12, 28])
def test_equals_the_hooks(steps: int) -> None:
    assert_parity(
        "wan",
        sea("wan"),
        steps,
        "seacache",
        [last_block("wan")],
        placed=True,
        lowerings=("auto", "conditional"),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.3, "residual_order": 0, "max_consecutive_cached": 0},
        {"threshold": 0.8, "retention_steps": 3, "cache_end_steps": 2},
        {"threshold": 0.6, "power_exp": 2.0, "max_consecutive_cached": 1},
    ],
)
def test_equals_the_hooks_at_other_settings(options: dict[str, object]) -> None:
    assert_parity(
        "wan", config(**options), 28, "seacache", [last_block("wan")], placed=True
    )
