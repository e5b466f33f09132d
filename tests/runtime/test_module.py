"""The drop-in: everything a pipeline does to a bare transformer works on it."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from accelerate.hooks import (
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from diffusers import CogVideoXTransformer3DModel

import graphcache
from graphcache import (
    CaptureError,
    GraphCacheError,
    Interval,
    never_reuse,
    pyramid_attention_broadcast,
)
from graphcache.policy import Attention, Policy
from tests.models import TinyTransformer, run_loop, same, tiny, tiny_inputs
from tests.zoo import ZOO, first_inputs, make

PAB = pyramid_attention_broadcast(spatial=2)


def compiled(module: TinyTransformer, config: object = PAB) -> TinyTransformer:
    result = graphcache.compile(module, config, backend="eager")
    assert isinstance(result, TinyTransformer)
    return result


def test_is_the_module_with_another_forward() -> None:
    module = tiny()
    subject = compiled(module)
    assert type(subject).__name__ == "TinyTransformer"
    assert inspect.signature(subject.forward) == inspect.signature(module.forward)
    assert list(subject.state_dict()) == list(module.state_dict())
    pairs = zip(subject.parameters(), module.parameters(), strict=True)
    assert all(left is right for left, right in pairs)
    assert subject.blocks is module.blocks


def test_the_original_still_runs_uncached() -> None:
    module = tiny()
    expected = run_loop(copy.deepcopy(module), 12)
    subject = compiled(module)
    cached = run_loop(subject, 12)
    assert same(run_loop(module, 12), expected)
    assert not same(cached, expected)


def test_attributes_go_both_ways() -> None:
    module = tiny()
    subject = compiled(module)
    subject.marker = 3
    assert module.marker == 3
    module.train()
    assert subject.training


def test_return_dict_either_way() -> None:
    subject = compiled(tiny(), never_reuse())
    with torch.no_grad():
        (plain,) = subject(**tiny_inputs(), return_dict=False)
        named = subject(**tiny_inputs(400), return_dict=True)
    assert set(named) == {"sample"}
    assert named["sample"].shape == plain.shape
    assert subject.cache_stats.captures == 1


def test_weights_written_replaced_and_moved_are_seen() -> None:
    subject, plain = compiled(tiny(), never_reuse()), tiny()
    run_loop(subject, 2)
    with torch.no_grad():
        for module in (subject, plain):
            module.time.weight.mul_(2.0)
            module.blocks[0].ff.weight = torch.nn.Parameter(torch.ones(8, 8))
    assert same(run_loop(subject, 3), run_loop(plain, 3))
    for module in (subject, plain):
        module.to(torch.float64)
    inputs = {k: v.double() for k, v in tiny_inputs().items()}
    with torch.no_grad():
        assert torch.equal(subject(**inputs)[0], plain(**inputs)[0])


@pytest.mark.parametrize("part", ["", "blocks.1"])
def test_a_changed_attribute_is_captured_again(part: str) -> None:
    subject, plain = compiled(tiny(), never_reuse()), tiny()
    run_loop(subject, 2)
    for module in (subject, plain):
        module.get_submodule(part).gain = 2.0
    assert same(run_loop(subject, 2), run_loop(plain, 2))
    assert subject.cache_stats.captures == 2


def test_a_replaced_layer_is_captured_again() -> None:
    subject, plain = compiled(tiny(), never_reuse()), tiny()
    run_loop(subject, 2)
    for module in (subject, plain):
        torch.manual_seed(3)
        module.blocks[0].ff = torch.nn.Sequential(torch.nn.Linear(8, 8))
    assert same(run_loop(subject, 2), run_loop(plain, 2))


def test_a_hook_in_mid_generation_is_refused() -> None:
    subject = compiled(tiny())
    with torch.no_grad():
        subject(**tiny_inputs(900))
        handle = subject.blocks[0].register_forward_hook(lambda *_: None)
        with pytest.raises(CaptureError, match=r"blocks\.0 has a torch forward hook"):
            subject(**tiny_inputs(800))
        handle.remove()
        subject(**tiny_inputs(700))


def test_offloading_hooks_wrap_the_compiled_module() -> None:
    subject, expected = compiled(tiny()), run_loop(compiled(tiny()), 6)
    seen: list[str] = []

    class Onload(ModelHook):
        def pre_forward(
            self, module: object, *args: object, **kwargs: object
        ) -> object:
            seen.append(type(module).__name__)
            return args, kwargs

    add_hook_to_module(subject, Onload())
    assert same(run_loop(subject, 6), expected)
    assert seen == ["TinyTransformer"] * 6
    remove_hook_from_module(subject)
    assert same(run_loop(subject, 6), expected)


def test_hooks_on_the_compiled_module_run_around_it_once() -> None:
    subject, plain = compiled(tiny(), never_reuse()), tiny()
    run_loop(subject, 2)
    for module in (subject, plain):
        module.register_forward_hook(lambda _, __, output: (output[0] * 2,))
        module.gain = 3.0
    assert same(run_loop(subject, 3), run_loop(plain, 3))
    assert subject.cache_stats.captures == 2


def test_another_shape_is_captured_again_and_frees_the_old_buffers() -> None:
    subject = compiled(tiny())
    with torch.no_grad(), subject.cache_context("c"):
        subject(**tiny_inputs(900, tokens=3))
        subject(**tiny_inputs(800, tokens=5))
    runner = subject._graphcache_runner
    (stream,) = runner.clock.streams.values()
    assert {tuple(b.shape) for b in stream.buffers.values()} == {(2, 5, 8)}
    assert (stream.index, stream.begun) == (2, 1)
    with torch.no_grad(), subject.cache_context("c"):
        subject(**tiny_inputs(700, tokens=3))
    assert subject.cache_stats.captures == 2


def test_a_new_shape_never_reuses() -> None:
    subject, plain = compiled(tiny()), tiny()
    with torch.no_grad(), subject.cache_context("c"):
        for timestep, tokens in ((500, 3), (490, 5), (480, 3)):
            inputs = tiny_inputs(timestep, tokens)
            assert torch.equal(subject(**inputs)[0], plain(**inputs)[0])


def test_reset_is_fresh_and_generations_do_not_touch() -> None:
    subject = compiled(tiny())
    first = run_loop(subject, 12, seed=1)
    assert same(run_loop(compiled(tiny()), 12, seed=2), run_loop(subject, 12, seed=2))
    subject._reset_stateful_cache()
    assert subject._graphcache_runner.clock.streams == {}
    assert same(run_loop(subject, 12, seed=1), first)


def test_two_streams_are_each_as_if_alone() -> None:
    subject = compiled(tiny())
    alone = [run_loop(compiled(tiny()), 12, seed=seed) for seed in (1, 2)]
    states = [tiny_inputs(seed=seed) for seed in (1, 2)]
    together: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for timestep in [999.0 - 999.0 * i / 11 for i in range(12)]:
            for outputs, inputs in zip(together, states, strict=True):
                inputs["timestep"] = torch.full((2,), timestep)
                (output,) = subject(**inputs)
                outputs.append(output)
                inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
    assert all(same(*pair) for pair in zip(together, alone, strict=True))


def test_the_caller_may_write_to_what_it_gets_and_gave() -> None:
    subject, careful = compiled(tiny()), compiled(tiny())
    expected = run_loop(careful, 12)
    inputs = tiny_inputs()
    outputs = []
    with torch.no_grad():
        for timestep in [999.0 - 999.0 * i / 11 for i in range(12)]:
            inputs["timestep"].fill_(timestep)
            (output,) = subject(**inputs)
            outputs.append(output.clone())
            inputs["hidden_states"].sub_(0.1 * output)
            output.fill_(float("nan"))
    assert same(outputs, expected)


def test_an_exception_in_the_loop_leaves_nothing_behind() -> None:
    subject = compiled(tiny())
    with torch.no_grad():
        subject(**tiny_inputs(500, seed=5))
        with pytest.raises(KeyboardInterrupt), subject.cache_context("call 0"):
            raise KeyboardInterrupt
    assert subject._graphcache_runner.clock.streams == {}
    with torch.no_grad():
        with pytest.raises(TypeError):
            subject(**tiny_inputs(490), unknown=1)
        expected, _ = tiny()(**tiny_inputs(490)), None
        assert torch.equal(subject(**tiny_inputs(490))[0], expected[0])


def test_context_is_restored_and_checks_its_keywords() -> None:
    subject = compiled(tiny())
    with subject.cache_context("outer"):
        with subject.cache_context("inner", step_index=0, sigma=0.5):
            assert subject._graphcache_runner.clock.context.name == "inner"
        assert subject._graphcache_runner.clock.context.name == "outer"
    assert subject._graphcache_runner.clock.context is None
    with pytest.raises(TypeError), subject.cache_context("c", unknown=1):
        pass


def test_deepcopy_has_weights_and_state_of_its_own() -> None:
    subject = compiled(tiny())
    expected = run_loop(subject, 6)
    twin = copy.deepcopy(subject)
    with torch.no_grad():
        subject.time.weight.zero_()
    assert same(run_loop(twin, 6), expected)
    assert twin.time.weight is not subject.time.weight
    assert twin.cache_stats is not subject.cache_stats


def test_a_second_compiler_is_refused() -> None:
    with pytest.raises(GraphCacheError, match="compiled already"):
        compiled(tiny()).compile()


def test_buffers_are_as_large_as_planned() -> None:
    subject = compiled(tiny(), [Policy("p", Attention(), Interval(2))])
    with torch.no_grad():
        subject(**tiny_inputs(500))
    stats = subject.cache_stats
    assert stats.planned_bytes == 2 * (2 * 3 * 8) * 4
    assert stats.peak_buffer_bytes == stats.planned_bytes


def test_units_of_the_timestep_are_read_off_the_graph() -> None:
    subject = compiled(tiny(units=1000.0))
    inputs = tiny_inputs()
    with torch.no_grad():
        for timestep in (0.9, 0.7, 0.5, 0.3):
            inputs["timestep"] = torch.full((2,), timestep)
            subject(**inputs)
    seen = [record.timestep for record in subject.cache_stats.steps]
    assert seen == pytest.approx([900, 700, 500, 300])
    assert [r.computed["spatial"] for r in subject.cache_stats.steps] == [1, 0, 1, 0]


def test_a_diffusers_model_keeps_its_face(tmp_path: Path) -> None:
    tiny = ZOO["cogvideox"]
    module = make(tiny)
    subject = graphcache.compile(module, PAB, backend="eager")
    assert subject.config.num_layers == 2
    assert subject.dtype == torch.float32
    assert subject.device.type == "cpu"
    assert subject.config == module.config
    subject.save_pretrained(tmp_path)
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(again.proj_out.weight, module.proj_out.weight)
    with torch.no_grad():
        inputs = first_inputs(tiny)
        named = subject(**inputs)
        assert torch.equal(named.sample, module(**inputs).sample)
        assert type(named) is type(module(**inputs))
