"""Pyramid Attention Broadcast against diffusers' own hooks, run eager.

The same attention calls are computed at every step, and outputs are equal bit for bit.
Where diffusers is wrong (two streams in turn share their attention) ours is what each
stream gives alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from diffusers import PyramidAttentionBroadcastConfig
from torch import Tensor, nn

import graphcache
from graphcache import never_reuse
from tests.models import same
from tests.parity.hooks import caching, hooked
from tests.zoo import MODELS, ZOO, Clock, TinyModel, denoise, denoise_in_turn, make

WIDE = (-1, 1001)
ALL_KINDS = {"spatial": 2, "temporal": 3, "cross": 4}


def config(
    clock: Clock | None, ranges: dict[str, int], window: tuple[int, int] | None = None
) -> PyramidAttentionBroadcastConfig:
    """diffusers' config with the given skip ranges, and windows if not the default."""
    options: dict[str, Any] = {
        f"{kind}_attention_block_skip_range": every for kind, every in ranges.items()
    }
    if window is not None:
        options |= {f"{kind}_attention_timestep_skip_range": window for kind in ranges}
    return PyramidAttentionBroadcastConfig(current_timestep_callback=clock, **options)


def by_diffusers(
    tiny: TinyModel,
    ranges: dict[str, int],
    run: Callable[[nn.Module, Clock], Any],
    window: tuple[int, int] | None = None,
) -> tuple[Any, list[Counter[str]]]:
    """What diffusers' hooks give, and what they computed at each step."""
    apply = caching(lambda clock: config(clock, ranges, window))
    module, clock, seen = hooked(tiny, apply)
    return run(module, clock), seen.calls


def computed_calls(module: nn.Module) -> list[set[str]]:
    """Paths of the gated regions that were computed, by step."""
    stats = module.cache_stats
    return [
        {
            path
            for policy, computed in record.computed.items()
            if computed
            for path in stats.regions[policy]
        }
        for record in stats.steps
    ]


def assert_parity(
    tiny: TinyModel, ranges: dict[str, int], steps: int, window: Any = None
) -> None:
    """Same computed calls and same bits, over two generations."""

    def run(module: nn.Module, clock: Clock) -> list[Tensor]:
        return denoise(module, tiny, steps, clock=clock)

    expected, counted = by_diffusers(tiny, ranges, run, window)
    clock = Clock()
    subject = graphcache.compile(
        make(tiny), config(clock, ranges, window), backend="eager"
    )
    first = run(subject, clock)
    assert same(first, expected)
    gated = {path for paths in subject.cache_stats.regions.values() for path in paths}
    wanted = [set(step) & gated for step in counted]
    assert computed_calls(subject) == wanted
    # What diffusers hooks and ours are the same modules.
    every = set().union(*map(set, counted))
    reused_somewhere = {p for p in every if any(p not in step for step in counted)}
    assert reused_somewhere <= gated
    assert same(run(subject, clock), expected)
    assert subject.cache_stats.captures == 1


def ranges_of(tiny: TinyModel, ranges: dict[str, int]) -> dict[str, int]:
    """The ranges for kinds that the model has; temporal ones need spatial unset."""
    found = {kind: every for kind, every in ranges.items() if kind in tiny.kinds}
    if "temporal" in found:
        # With default identifiers diffusers gives temporal blocks to spatial first.
        found.pop("spatial")
    return found


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_spatial_with_defaults(tiny: TinyModel) -> None:
    assert_parity(tiny, {"spatial": 2}, 30)


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_every_kind_at_any_timestep(tiny: TinyModel) -> None:
    assert_parity(tiny, ranges_of(tiny, ALL_KINDS), 12, WIDE)


@pytest.mark.parametrize("name", ["cogvideox", "latte", "wan"])
def test_spatial_before_temporal_before_cross(name: str) -> None:
    tiny = ZOO[name]
    ranges = {kind: ALL_KINDS[kind] for kind in tiny.kinds}
    assert_parity(tiny, ranges, 50, (200, 900))


def test_parts_of_a_config_that_match_nothing_are_left_out() -> None:
    assert_parity(ZOO["cogvideox"], ALL_KINDS, 12)


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_never_reuse_is_the_module_bit_for_bit(tiny: TinyModel, backend: str) -> None:
    subject = graphcache.compile(make(tiny), never_reuse(), backend=backend)
    assert same(denoise(subject, tiny, 3), denoise(make(tiny), tiny, 3))


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_without_a_callback_the_argument_tells_the_time(tiny: TinyModel) -> None:
    if tiny.name == "mochi":
        pytest.skip("Mochi's argument counts up; its pipeline needs the callback")
    clock = Clock()
    runs = [
        denoise(
            graphcache.compile(
                make(tiny), config(timekeeper, {"spatial": 2}), backend="eager"
            ),
            tiny,
            12,
            clock=clock,
        )
        for timekeeper in (clock, None)
    ]
    assert same(*runs)


def alone(seed: int, contexts: Any = "cond") -> list[Tensor]:
    """One stream of Wan, with a module of its own."""
    tiny, clock = ZOO["wan"], Clock()
    subject = graphcache.compile(
        make(tiny), config(clock, {"spatial": 2, "cross": 3}), backend="eager"
    )
    return denoise(subject, tiny, 12, clock=clock, seed=seed, context=contexts)


@pytest.mark.parametrize("contexts", [("cond", "uncond"), (None, None)])
def test_streams_in_turn_are_each_as_if_alone(contexts: Any) -> None:
    tiny, clock = ZOO["wan"], Clock()
    ranges = {"spatial": 2, "cross": 3}
    subject = graphcache.compile(make(tiny), config(clock, ranges), backend="eager")
    cond, uncond = denoise_in_turn(subject, tiny, 12, clock=clock, contexts=contexts)
    assert same(cond, alone(seed=1))
    assert same(uncond, alone(seed=2))

    def run(module: nn.Module, clock: Clock) -> Any:
        return denoise_in_turn(module, tiny, 12, clock=clock, contexts=contexts)

    # diffusers gives the second stream the attention of the first.
    (_, theirs), _ = by_diffusers(tiny, ranges, run)
    assert not same(theirs, uncond)


def test_each_stream_alone_is_diffusers_alone() -> None:
    tiny = ZOO["wan"]

    def run(module: nn.Module, clock: Clock) -> list[Tensor]:
        return denoise(module, tiny, 12, clock=clock, seed=2)

    expected, _ = by_diffusers(tiny, {"spatial": 2, "cross": 3}, run)
    assert same(alone(seed=2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cogvideox", "pixart"])
def test_inductor_agrees_with_diffusers(name: str) -> None:
    tiny = ZOO[name]

    def run(module: nn.Module, clock: Clock) -> list[Tensor]:
        return denoise(module, tiny, 12, clock=clock)

    expected, _ = by_diffusers(tiny, {"spatial": 2}, run)
    clock = Clock()
    subject = graphcache.compile(
        make(tiny), config(clock, {"spatial": 2}), progress=False
    )
    for got, want in zip(run(subject, clock), expected, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
