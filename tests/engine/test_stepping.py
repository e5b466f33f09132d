"""Streams, steps, resets and thresholds of an engine, and which calls it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import graphcache
from graphcache import (
    EngineError,
    PolicyError,
    first_block_cache,
    pyramid_attention_broadcast,
    step_mask,
    teacache,
)
from graphcache.engine import EngineModule, load
from tests.engine.engines import compiled, engine_of, equal, steps
from tests.models import run_loop, same, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC

pytestmark = pytest.mark.usefixtures("memory")
TIMES = (999.0, 800.0, 600.0, 400.0, 200.0)


def both(config: object, path: Path, **kwargs: Any) -> tuple[Any, EngineModule]:
    """A compiled module and its engine."""
    subject = compiled(config)
    return subject, engine_of(subject, path, **kwargs)


def in_turn(module: Any, contexts: tuple[str | None, ...]) -> list[Any]:
    """Calls of several streams at every step, each with inputs of its own."""
    outputs = []
    with torch.no_grad():
        for time in TIMES:
            for seed, name in enumerate(contexts):
                inputs = tiny_inputs(time, seed=seed)
                if name is None:
                    outputs.append(module(**inputs))
                else:
                    with module.cache_context(name):
                        outputs.append(module(**inputs))
    return outputs


@pytest.mark.parametrize("config", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_streams(config: object, tmp_path: Path) -> None:
    subject, engine = both(config, tmp_path)
    for contexts in (("cond", "uncond"), (None, None), ("a", None)):
        assert equal(in_turn(engine, contexts), in_turn(subject, contexts))
    assert steps(engine) == steps(subject)
    assert {"cond", "uncond", "call 0", "call 1", "a"} == {
        step.stream for step in steps(engine)
    }


def test_a_reset_computes(engine_path: Path) -> None:
    engine = load(engine_path)
    run_loop(engine, 2)
    engine._reset_stateful_cache()
    run_loop(engine, 2)
    said = [step.computed["attention"] for step in steps(engine)]
    assert said == [True, False, True, False]
    assert engine.cache_stats.resets == 1


def test_an_exception_in_the_loop_leaves_nothing_behind(engine_path: Path) -> None:
    engine = load(engine_path)
    wanted = run_loop(engine, 5)
    with torch.no_grad():
        engine(**tiny_inputs(999.0))
        with pytest.raises(KeyboardInterrupt), engine.cache_context("cond"):
            raise KeyboardInterrupt
        # The timestep is where it was, and would be the call of another stream.
        assert same(run_loop(engine, 5), wanted)
        engine(**tiny_inputs(999.0))
        with pytest.raises(TypeError, match="timestep"):
            engine(torch.zeros(2, 3, 8), torch.zeros(2, 4, 8))
        assert same(run_loop(engine, 5), wanted)
    assert {step.stream for step in steps(engine)} == {"call 0"}


def test_thresholds_at_run_time(tmp_path: Path) -> None:
    subject = compiled(first_block_cache(0.1))
    subject.cache_thresholds["first_block"] = 0.25
    engine = engine_of(subject, tmp_path)
    assert dict(engine.cache_thresholds) == {"first_block": 0.25}
    counts = []
    for threshold in (0.25, 0.0, float("inf")):
        for module in (subject, engine):
            module.cache_thresholds["first_block"] = threshold
            module._reset_stateful_cache()
        assert same(run_loop(engine, 6), run_loop(subject, 6))
        assert steps(engine) == steps(subject)
        last = steps(engine)[-6:]
        counts.append(sum(step.computed["first_block"] for step in last))
    assert counts[1:] == [6, 1]
    assert 1 < counts[0] < 6
    with pytest.raises(PolicyError, match="first_block"):
        engine.cache_thresholds["spatial"] = 0.1


def test_a_threshold_of_what_is_hoisted(tmp_path: Path) -> None:
    subject, engine = both(teacache(3.0, timestep_only=True), tmp_path)
    for threshold in (3.0, 0.5):
        for module in (subject, engine):
            module.cache_thresholds["teacache"] = threshold
        assert same(run_loop(engine, 6), run_loop(subject, 6))
        assert steps(engine) == steps(subject)


def test_disabled_and_enabled(tmp_path: Path) -> None:
    subject, engine = both(STATIC, tmp_path)
    plain = run_loop(tiny(depth=3), 5)
    engine.disable_cache()
    assert not engine.is_cache_enabled
    assert same(run_loop(engine, 5), plain)
    with pytest.warns(UserWarning, match="disabled already"):
        engine.disable_cache()
    engine.enable_cache()
    assert same(run_loop(engine, 5), run_loop(subject, 5))
    with pytest.raises(ValueError, match="enabled already"):
        engine.enable_cache()
    engine.disable_cache()
    with pytest.raises(EngineError, match="policies that it was exported with"):
        engine.enable_cache(STATIC)


def test_a_scheduler(tmp_path: Path) -> None:
    policy = pyramid_attention_broadcast(spatial=2, window=(100, 700))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(6)
    subject = compiled(policy, scheduler=scheduler)
    engine = engine_of(subject, tmp_path, scheduler=scheduler)
    for module in (subject, engine):
        with torch.no_grad():
            for t in scheduler.timesteps:
                module(**tiny_inputs(float(t)))
    assert steps(engine) == steps(subject)
    assert {step.computed["spatial"] for step in steps(engine)} == {True, False}
    with pytest.raises(PolicyError, match="timesteps"):
        engine_of(compiled(policy), tmp_path / "other", scheduler=object())


def test_a_loop_that_the_schedule_is_not_for(tmp_path: Path) -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(6)
    engine = engine_of(compiled(step_mask([1, 0, 1, 0])), tmp_path, scheduler=scheduler)
    with pytest.raises(PolicyError, match="4 steps and the loop has 6"):
        run_loop(engine, 6)


def test_a_callback(engine_path: Path) -> None:
    now = iter((900.0, 850.0, 800.0))
    engine = load(engine_path, timestep_callback=lambda: next(now))
    run_loop(engine, 3)
    assert [step.timestep for step in steps(engine)] == [900.0, 850.0, 800.0]


def test_two_shapes_in_one_engine(tmp_path: Path) -> None:
    subject = graphcache.compile(tiny(depth=3, cross=True), DYNAMIC, backend="eager")
    wanted = [run_loop(subject, 5, tokens=tokens) for tokens in (3, 5, 3)]
    engine = engine_of(subject, tmp_path)
    assert len(engine.manifest.captures) == 2
    got = [run_loop(engine, 5, tokens=tokens) for tokens in (3, 5, 3)]
    assert all(map(same, got, wanted))
    assert steps(engine) == steps(subject)
    with pytest.raises(EngineError, match=r"hidden_states is float32\[2, 4, 8\]"):
        run_loop(engine, 1, tokens=4)


WRONG = {
    "shape": ({"hidden_states": torch.zeros(2, 4, 8)}, r"\[2, 4, 8\].*\[2, 3, 8\]"),
    "rank": ({"hidden_states": torch.zeros(3, 8)}, r"hidden_states .*\[3, 8\]"),
    "batch": ({"timestep": torch.zeros(1)}, r"timestep is float32\[1\]"),
    "dtype": ({"hidden_states": torch.zeros(2, 3, 8).double()}, "is float64"),
    "timestep": ({"timestep": torch.zeros(2, dtype=torch.int64)}, "is int64"),
    "none": ({"encoder_hidden_states": None}, "encoder_hidden_states is None"),
    "device": (
        {"hidden_states": torch.empty(2, 3, 8, device="meta")},
        "hidden_states is .*on meta, and the engine takes .*on cpu",
    ),
    "container": ({"hidden_states": [torch.zeros(2, 3, 8)]}, "hidden_states is list"),
}


def test_calls_that_it_does_not_take(engine_path: Path) -> None:
    engine = load(engine_path)
    with torch.no_grad():
        for changed, message in WRONG.values():
            engine(**tiny_inputs())
            with pytest.raises(EngineError, match=message):
                engine(**{**tiny_inputs(), **changed})
    # None of them computed anything, and what comes next begins anew.
    assert [step.index for step in steps(engine)] == [0] * len(WRONG)


def test_arguments_as_python_has_them(tmp_path: Path) -> None:
    subject, engine = both(STATIC, tmp_path)
    inputs = tiny_inputs()
    with torch.no_grad():
        assert equal(engine(*inputs.values()), subject(*inputs.values()))
        with pytest.raises(TypeError, match="encoder_hidden_states"):
            engine(inputs["hidden_states"])
        with pytest.raises(TypeError, match="guidance"):
            engine(**inputs, guidance=3)
        with pytest.raises(TypeError, match="multiple values"):
            engine(inputs["hidden_states"], **inputs)


def test_strides_do_not_matter(engine_path: Path) -> None:
    engine = load(engine_path)
    inputs = tiny_inputs()
    turned = inputs["hidden_states"].transpose(0, 1).contiguous().transpose(0, 1)
    with torch.no_grad():
        (wanted,) = engine(**inputs)
        (got,) = engine(**{**inputs, "hidden_states": turned})
    torch.testing.assert_close(got, wanted)


class Moded(torch.nn.Module):
    """Has an argument that is compiled in, one whose value is, and keeps a note."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny(depth=2)

    def forward(
        self,
        hidden_states: Any,
        timestep: Any,
        lengths: Any,
        kind: Any = "a",
        notes: Any = None,
    ) -> Any:
        """The tiny module on as many tokens as `lengths` says."""
        kept = hidden_states[:, : int(lengths.max())]
        if notes is not None:
            notes["kind"] = kind
        output = self.inner(kept, kept, timestep)[0]
        return (output * (2.0 if kind == "b" else 1.0), {"kind": kind})


def test_values_that_were_compiled_in(tmp_path: Path) -> None:
    subject: Any = graphcache.compile(Moded().eval(), STATIC, backend="eager")
    inputs = {
        "hidden_states": torch.randn(2, 5, 8),
        "timestep": torch.full((2,), 500.0),
        "lengths": torch.tensor([2, 4]),
        "notes": {"kind": ""},
    }
    with torch.no_grad():
        wanted = subject(**inputs)
        engine = engine_of(subject, tmp_path)
        inputs["notes"]["kind"] = ""
        got = engine(**inputs)
        assert equal(got[0], wanted[0])
        assert got[1] == wanted[1] == {"kind": "a"}
        assert inputs["notes"] == {"kind": "a"}
        inputs["notes"]["kind"] = ""
        with pytest.raises(EngineError, match="values of lengths were compiled"):
            engine(**{**inputs, "lengths": torch.tensor([1, 3])})
        with pytest.raises(EngineError, match="kind is b, and the engine takes a"):
            engine(**inputs, kind="b")
        with pytest.raises(EngineError, match="notes is None"):
            engine(**{**inputs, "notes": None})
