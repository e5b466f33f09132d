"""The references themselves, on small modules and on tiny models of diffusers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from diffusers import (
    PyramidAttentionBroadcastConfig,
)
from torch import Tensor, nn

from tests.models import run_loop, same, tiny, tiny_inputs
from tests.parity.hooks import by_hooks, caching
from tests.parity.settings import (
    DB_CACHE,
    FIRST_BLOCK,
    LAYERS,
    MAG,
    TEA,
    first_block,
    mag,
    taylor_seer,
)
from tests.parts import attentions, feed_forwards, is_cross, trunk
from tests.references import (
    Log,
    ReferenceRun,
    by_reference,
    db_cache,
    fora,
    layer_errors,
    logged,
    smooth_cache,
    smooth_schedule,
    step_mask,
    t_gate,
    tea_cache,
    trunk_mask,
)
from tests.references.db_cache import Limits
from tests.references.tea_cache import modulated, polynomial
from tests.zoo import ZOO, Clock, TinyModel, denoise, first_inputs, make

INFINITE = float("inf")
INJECTED = ("wan_vace", "flux_controlnet", "flux_controlnet_moving")
Method = Callable[[nn.Module], AbstractContextManager[Log]]

NEVER_REUSE: dict[str, Method] = {
    "fora": lambda module: fora(module, every=1),
    "step_mask": lambda module: step_mask(module, {trunk(module)[0]: [1] * 4}),
    "trunk_mask": lambda module: trunk_mask(module, [1] * 4, trunk(module)[1:]),
    "t_gate": lambda module: t_gate(module, gate_step=4, self_interval=1),
    "tea_cache": lambda module: tea_cache(module, 0.0, blocks=trunk(module)[:1]),
    "db_cache": lambda module: db_cache(module, 0.0),
}


def on_tiny(method: Method, steps: int, **kwargs: Any) -> ReferenceRun:
    """A generation of a module with blocks, attention and feed-forward."""
    module = tiny(depth=4, cross=True, **kwargs)
    return logged(method(module), lambda: run_loop(module, steps))


@pytest.mark.parametrize("method", NEVER_REUSE)
@pytest.mark.parametrize("model", ZOO.values(), ids=lambda model: model.name)
def test_without_reuse_it_is_the_module(model: TinyModel, method: str) -> None:
    run = by_reference(model, NEVER_REUSE[method], 4)
    assert run.steps() == [0, 1, 2, 3]
    assert same(run.outputs, denoise(make(model), model, 4))


@pytest.mark.parametrize("method", NEVER_REUSE)
def test_without_reuse_it_is_the_small_module(method: str) -> None:
    run = on_tiny(NEVER_REUSE[method], 4)
    assert same(run.outputs, run_loop(tiny(depth=4, cross=True), 4))


@pytest.mark.parametrize("method", NEVER_REUSE)
def test_forwards_are_restored(method: str) -> None:
    module = tiny(depth=2, cross=True)

    def own(*args: Any, **kwargs: Any) -> Any:
        return type(module.blocks[1]).forward(module.blocks[1], *args, **kwargs)

    module.blocks[1].forward = own
    with pytest.raises(KeyError), NEVER_REUSE[method](module):
        raise KeyError
    replaced = [
        path for path, part in module.named_modules() if "forward" in vars(part)
    ]
    assert replaced == ["blocks.1"]
    assert module.blocks[1].forward is own
    assert not module._forward_pre_hooks


@pytest.mark.parametrize("always", [db_cache, tea_cache])
def test_an_infinite_threshold_computes_the_first_step_alone(always: Any) -> None:
    for name in ("flux", "wan", "cogview4", "sd3", "flux2"):
        run = by_reference(ZOO[name], lambda module: always(module, INFINITE), 6)
        assert run.steps() == [0]
    assert on_tiny(lambda module: always(module, INFINITE), 6).steps() == [0]


def test_fora_holds_every_layer() -> None:
    run = on_tiny(lambda module: fora(module, every=3), 7)
    layers = {
        f"blocks.{index}.{layer}"
        for index in range(4)
        for layer in ("attn1", "attn2", "ff")
    }
    assert run.computed == [layers, set(), set(), layers, set(), set(), layers]


def test_fora_holds_each_call_of_a_layer() -> None:
    # The feed-forward serves two streams of different lengths.
    model = ZOO["cogview4"]
    run = by_reference(model, lambda module: fora(module, every=2), 6)
    assert run.steps("transformer_blocks.0.ff") == [0, 2, 4]
    assert all(output.isfinite().all() for output in run.outputs)


def test_fora_is_pyramid_with_one_range() -> None:
    def config(clock: Clock) -> PyramidAttentionBroadcastConfig:
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=3,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=clock,
        )

    model = ZOO["flux"]
    run = by_reference(
        model, lambda module: fora(module, every=3, paths=attentions(module)), 12
    )
    assert same(run.outputs, by_hooks(model, caching(config), 12).outputs)


def test_a_mask_for_each_module() -> None:
    masks = {
        "blocks.0.attn1": [0, 0, 1, 0, 1, 0],
        "blocks.1": [1, 1, 0, 0, 0, 1],
        "blocks.3.ff": [1, 0, 0, 1, 0, 0],
    }
    run = on_tiny(lambda module: step_mask(module, masks), 6)
    # Without an output to hold, the first step computes whatever the mask says.
    assert run.steps("blocks.0.attn1") == [0, 2, 4]
    assert run.steps("blocks.1") == [0, 1, 5]
    assert run.steps("blocks.3.ff") == [0, 3]
    assert run.steps() == [0, 1, 2, 3, 4, 5]


def test_what_is_held_is_the_output() -> None:
    module = tiny(depth=2)
    given: list[Tensor] = []
    with step_mask(module, {"blocks.0": [1, 0, 1]}):
        module.blocks[1].register_forward_pre_hook(
            lambda _, args: given.append(args[0].clone())
        )
        run_loop(module, 3)
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[1], given[2])


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"cogview4"}))
def test_step_masks_are_a_forecast_of_order_zero(name: str) -> None:
    steps = 10
    mask = [int(step in (0, 1, 2, 4, 9)) for step in range(steps)]
    hooked = by_hooks(ZOO[name], taylor_seer(name, max_order=0), steps)
    paths = [
        path for path in set().union(*hooked.computed) if not hooked.steps(path)[5:]
    ]

    def method(module: nn.Module) -> AbstractContextManager[Log]:
        layers = {*attentions(module), *feed_forwards(module)} & set(paths)
        return step_mask(module, dict.fromkeys(layers, mask))

    assert same(by_reference(ZOO[name], method, steps).outputs, hooked.outputs)


@pytest.mark.parametrize("name", [name for name in MAG if name not in INJECTED])
def test_trunk_masks_are_the_schedule_of_mag_cache(name: str) -> None:
    steps = 12
    hooked = by_hooks(ZOO[name], mag(name, steps), steps)
    ran = hooked.steps(trunk(make(ZOO[name]))[-1])
    mask = [int(step in ran) for step in range(steps)]
    run = by_reference(ZOO[name], lambda module: trunk_mask(module, mask), steps)
    assert run.steps() == ran
    assert same(run.outputs, hooked.outputs)


@pytest.mark.parametrize("steps", [12, 28])
@pytest.mark.parametrize("name", FIRST_BLOCK)
def test_one_head_block_is_first_block_cache(name: str, steps: int) -> None:
    threshold = FIRST_BLOCK[name]
    run = by_reference(ZOO[name], lambda module: db_cache(module, threshold), steps)
    hooked = by_hooks(ZOO[name], first_block(name), steps)
    assert 1 < len(run.steps()) < steps
    if name in INJECTED:
        # Hooks add what is injected between the blocks a second time.
        assert not same(run.outputs, hooked.outputs)
        return
    assert run.steps() == hooked.steps(trunk(make(ZOO[name]))[-1])
    assert same(run.outputs, hooked.outputs)


@pytest.mark.parametrize("method", ["db_cache", "trunk_mask", "tea_cache"])
@pytest.mark.parametrize("name", [*INJECTED, "flux2", "sd3", "hunyuan_video"])
def test_what_is_injected_counts_once(name: str, method: str) -> None:
    always: dict[str, Method] = {
        "db_cache": lambda module: db_cache(module, INFINITE),
        "trunk_mask": lambda module: trunk_mask(module, [1, 0]),
        "tea_cache": lambda module: tea_cache(module, INFINITE),
    }
    module = make(ZOO[name])
    inputs = first_inputs(ZOO[name])
    with torch.no_grad(), always[method](module) as log:
        computed, reused = (module(**inputs, return_dict=False)[0] for _ in range(2))
    assert log.computed[0]
    assert not log.computed[1]
    torch.testing.assert_close(reused, computed, rtol=1e-4, atol=1e-4)


def test_smooth_schedules_are_scanned() -> None:
    errors = {
        "attn1": [[0.1, 0.3, 0.5], [0.1, 0.1, 0.1], [0.9, 0.9], [0.1], []],
        "ff": [[0.1, 0.4, 0.2], [0.0, 0.0, 0.0], [0.0, 0.0], [0.0], []],
    }
    assert smooth_schedule(errors, 0.35) == {
        "attn1": [1, 0, 0, 1, 1],
        "ff": [1, 0, 0, 0, 1],
    }
    assert smooth_schedule(errors, -1.0)["ff"] == [1] * 5
    assert smooth_schedule(errors, 1.0)["attn1"] == [1, 0, 0, 0, 1]


def test_smooth_errors_are_of_held_outputs() -> None:
    module = tiny(depth=2)
    outputs: list[Tensor] = []
    handle = module.blocks[0].ff.register_forward_hook(
        lambda *args: outputs.append(args[-1].clone())
    )
    errors = layer_errors(module, lambda: run_loop(module, 5), lags=2)
    handle.remove()
    assert set(errors) == {"attn1", "ff"}
    assert [len(row) for row in errors["ff"]] == [2, 2, 2, 1, 0]
    one = tiny(depth=1)
    (alone,) = layer_errors(one, lambda: run_loop(one, 2), lags=1)["attn1"][:1]
    assert 0 < alone[0] < 2


@pytest.mark.parametrize("name", ["wan", "pixart", "flux"])
def test_smooth_cache_from_its_own_errors(name: str) -> None:
    model, steps = ZOO[name], 8
    module = make(model)
    errors = layer_errors(module, lambda: denoise(module, model, steps))
    every = sorted(error for table in errors.values() for row in table for error in row)
    schedule = smooth_schedule(errors, every[len(every) // 2])
    assert any(0 in mask for mask in schedule.values())
    run = by_reference(model, lambda module: smooth_cache(module, schedule), steps)
    for path in set().union(*run.computed):
        mask = schedule[path.rpartition(".")[2]]
        assert run.steps(path) == [step for step, one in enumerate(mask) if one]
    exact = smooth_schedule(errors, -1.0)
    plain = by_reference(model, lambda module: smooth_cache(module, exact), steps)
    assert same(plain.outputs, denoise(make(model), model, steps))


@pytest.mark.parametrize("name", ["wan", "pixart", "latte", "flux"])
def test_the_gate_freezes_cross_attention(name: str) -> None:
    run = by_reference(ZOO[name], lambda module: t_gate(module), 14)
    module = make(ZOO[name])
    for path in set().union(*run.computed):
        cross = is_cross(path, module.get_submodule(path))
        expected = range(10) if cross else (0, 1, 2, 5, *range(9, 14))
        assert run.steps(path) == list(expected)


def test_the_gate_with_other_settings() -> None:
    def method(module: nn.Module) -> AbstractContextManager[Log]:
        return t_gate(module, gate_step=6, self_interval=3, warmup=0, late_interval=2)

    run = on_tiny(method, 12)
    assert run.steps("blocks.0.attn1") == [0, 3, 5, 6, 8, 10]
    assert run.steps("blocks.0.attn2") == [0, 1, 2, 3, 4, 5]


def test_tea_adds_up_the_changes_of_what_is_modulated() -> None:
    module = tiny(depth=3)
    seen: list[Tensor] = []
    with tea_cache(module, 0.25) as log:
        # Outside of what is replaced, so that it sees the steps that are reused.
        module.blocks[0].register_forward_pre_hook(
            lambda block, args: seen.append(block.norm(args[0]) + args[2])
        )
        run_loop(module, 12)
    total, expected = 0.0, [0]
    for step, (before, now) in enumerate(itertools.pairwise(seen), 1):
        total += float((now - before).abs().mean() / before.abs().mean())
        assert log.changes[step] == pytest.approx(total, rel=1e-5)
        if total >= 0.25:
            total = 0.0
            expected.append(step)
    assert [step for step, ran in enumerate(log.computed) if ran] == expected
    assert 1 < len(expected) < 12


def test_tea_rescales() -> None:
    assert polynomial([2.0, -3.0, 0.5], 4.0) == 2 * 16 - 3 * 4 + 0.5
    thrice = on_tiny(lambda module: tea_cache(module, 0.6, [3.0, 0.0]), 10)
    plain = on_tiny(lambda module: tea_cache(module, 0.2), 10)
    assert thrice.steps() == plain.steps()
    assert same(thrice.outputs, plain.outputs)


def test_tea_computes_the_last_step_if_told_which() -> None:
    run = on_tiny(lambda module: tea_cache(module, INFINITE, last_step=5), 6)
    assert run.steps() == [0, 5]


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox", "pixart", "sd3"])
def test_what_is_modulated_is_seen_without_running(name: str) -> None:
    module = make(ZOO[name])
    block = module.get_submodule(trunk(module)[0])
    found: list[tuple[Tensor, Tensor]] = []

    def note(attention: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(args[0] if args else kwargs["hidden_states"])

    def probe(block: nn.Module, args: Any, kwargs: Any) -> None:
        found.append(modulated(block, args, kwargs))

    given: list[Tensor] = []
    block.register_forward_pre_hook(probe, with_kwargs=True)
    first = block.get_submodule(attentions(block)[0])
    first.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        module(**first_inputs(ZOO[name]), return_dict=False)
    assert torch.equal(found[0], given[-1])


@pytest.mark.parametrize("method", [db_cache, tea_cache])
def test_what_is_not_a_number_computes(method: Any) -> None:
    module = tiny(depth=3)
    inputs = tiny_inputs()
    poisoned = {**inputs, "hidden_states": inputs["hidden_states"] * float("nan")}
    with torch.no_grad(), method(module, 1e9) as log:
        for given in (inputs, inputs, poisoned, inputs, inputs):
            module(**given)
    # The step after the poisoned one is compared with it.
    assert [bool(ran) for ran in log.computed] == [True, False, True, True, False]


def test_a_change_that_equals_the_threshold_computes() -> None:
    module = tiny(depth=3)
    for threshold, ran in ((0.0, [True, True]), (1e-30, [True, False])):
        with torch.no_grad(), db_cache(module, threshold) as log:
            for _ in range(2):
                module(**tiny_inputs())
        assert [bool(paths) for paths in log.computed] == ran
        assert log.changes == [None, 0.0]


LIMITS = [
    (Limits(warmup=3), [0, 1, 2]),
    (Limits(max_run=2), [0, 3, 6, 9]),
    (Limits(max_run=0), list(range(10))),
    (Limits(max_cached=3), [0, 4, 5, 6, 7, 8, 9]),
    (Limits(warmup=2, max_run=1, max_cached=2), [0, 1, 3, 5, 6, 7, 8, 9]),
    (Limits(mask=[1, 1, 0, 0, 1, 0, 0, 0, 1, 0]), [0, 1, 4, 8]),
    (Limits(mask=[0] * 10), [0]),
]


@pytest.mark.parametrize(("limits", "expected"), LIMITS)
def test_limits_come_before_the_threshold(limits: Limits, expected: list[int]) -> None:
    run = on_tiny(lambda module: db_cache(module, INFINITE, limits=limits), 10)
    assert run.steps() == expected


def test_a_static_mask_does_not_ask_the_threshold() -> None:
    mask = [1, 0, 0, 1, 0, 0]
    asks, static = (
        on_tiny(lambda module, limits=limits: db_cache(module, 0.0, limits=limits), 6)
        for limits in (Limits(mask=mask), Limits(mask=mask, static=True))
    )
    assert asks.steps() == list(range(6))
    assert static.steps() == [0, 3]
    assert set(static.changes) == {None}


def test_head_and_tail_always_run() -> None:
    seen: list[str] = []
    module = tiny(depth=6)
    for path in trunk(module):
        module.get_submodule(f"{path}.ff").register_forward_pre_hook(
            lambda *_, path=path: seen.append(path)
        )
    with db_cache(module, INFINITE, head=2, tail=1) as log:
        run_loop(module, 2)
    middle = ["blocks.2", "blocks.3", "blocks.4"]
    outer = ["blocks.0", "blocks.1", "blocks.5"]
    assert log.computed == [set(middle), set()]
    assert seen == [*outer[:2], *middle, outer[2], *outer]
    with (
        pytest.raises(ValueError, match="no block is left"),
        db_cache(module, 0.1, head=5, tail=1),
    ):
        pass


def test_changes_are_against_the_last_computed_step() -> None:
    module = tiny(depth=3)
    added: list[Tensor] = []
    module.blocks[0].register_forward_hook(
        lambda _, args, output: added.append(output - args[0])
    )
    with db_cache(module, 0.2) as log:
        run_loop(module, 12)
    ran = [step for step, paths in enumerate(log.computed) if paths]
    assert 1 < len(ran) < 12
    for step in range(1, 12):
        against = added[max(earlier for earlier in ran if earlier < step)]
        change = (added[step] - against).abs().mean() / against.abs().mean()
        assert log.changes[step] == pytest.approx(float(change), rel=1e-5)
        assert (step in ran) is (float(change) >= 0.2)


def assert_mixed(run: ReferenceRun, threshold: float) -> None:
    """Some steps ran, some did not, and no change is close to the threshold."""
    assert 1 < len(run.steps()) < len(run.outputs)
    assert all(output.isfinite().all() for output in run.outputs)
    measured = [change for change in run.changes if change is not None]
    assert all(abs(change - threshold) > 0.003 * threshold for change in measured)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("steps", [12, 28])
@pytest.mark.parametrize("name", DB_CACHE)
def test_settings_of_db_cache(name: str, steps: int, seed: int) -> None:
    head, tail, threshold = DB_CACHE[name]

    def method(module: nn.Module) -> AbstractContextManager[Log]:
        return db_cache(module, threshold, head=head, tail=tail)

    assert_mixed(by_reference(ZOO[name], method, steps, seed=seed), threshold)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("steps", [12, 28])
@pytest.mark.parametrize("name", TEA)
def test_settings_of_tea_cache(name: str, steps: int, seed: int) -> None:
    threshold = TEA[name]
    run = by_reference(
        ZOO[name], lambda module: tea_cache(module, threshold), steps, seed=seed
    )
    assert_mixed(run, threshold)
