"""The drop-in: what a pipeline does to a transformer works on an engine of it."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn
from torch.utils import _pytree as pytree

import graphcache
from graphcache import EngineError, pyramid_attention_broadcast
from graphcache.engine import load
from tests.engine.engines import compiled, engine_of, equal, steps
from tests.models import tiny, tiny_inputs
from tests.test_pipeline import generate, ours, pipeline
from tests.zoo import ZOO, first_inputs, make

pytestmark = pytest.mark.usefixtures("memory")


def test_outputs_either_way(tmp_path: Path) -> None:
    model = ZOO["cogvideox"]
    policy = pyramid_attention_broadcast(spatial=2)
    subject = graphcache.compile(make(model), policy, backend="eager")
    inputs = first_inputs(model)
    with torch.no_grad():
        subject(**inputs)
        engine = engine_of(subject, tmp_path)
        wanted = subject(**inputs)
        assert isinstance(wanted, Transformer2DModelOutput)
        named = engine(**inputs)
        (plain,) = engine(**inputs, return_dict=False)
    for sample in (named.sample, named["sample"], named[0], *named.to_tuple(), plain):
        assert torch.equal(sample, wanted.sample)
    assert tuple(named) == tuple(wanted) == ("sample",)
    assert named[:1] == (named.sample,)
    leaves, spec = pytree.tree_flatten(named)
    assert pytree.tree_unflatten(leaves, spec).sample is named.sample
    with pytest.raises(AttributeError, match="no field 'prediction'"):
        named.prediction  # noqa: B018
    with pytest.raises(KeyError):
        named["prediction"]


def test_outputs_of_a_plain_module(tmp_path: Path) -> None:
    subject = compiled()
    engine = engine_of(subject, tmp_path)
    inputs = tiny_inputs()
    with torch.no_grad():
        for return_dict in (True, False):
            wanted = subject(**inputs, return_dict=return_dict)
            got = engine(**inputs, return_dict=return_dict)
            assert type(got) is type(wanted)
            assert equal(got, wanted)


def test_what_a_pipeline_asks_a_transformer(tmp_path: Path) -> None:
    model = ZOO["cogvideox"]
    module = make(model)
    policy = pyramid_attention_broadcast(spatial=2)
    subject = graphcache.compile(
        module, policy, backend="eager", example_inputs=first_inputs(model)
    )
    engine = engine_of(subject, tmp_path)
    for name, value in module.config.items():
        wanted = list(value) if isinstance(value, tuple) else value
        assert engine.config[name] == getattr(engine.config, name) == wanted
    with pytest.raises(AttributeError, match="no 'colour'"):
        engine.config.colour  # noqa: B018
    assert (engine.dtype, engine.device) == (module.dtype, module.device)
    assert list(inspect.signature(engine.forward).parameters) == list(
        inspect.signature(module.forward).parameters
    )
    assert not engine.training
    assert list(engine.parameters()) == []
    assert "CogVideoXTransformer3DModel, memory" in repr(engine)


def test_the_dtype_is_the_modules(tmp_path: Path) -> None:
    module = tiny().to(torch.bfloat16)
    inputs = {
        name: value.to(torch.bfloat16) if name != "timestep" else value
        for name, value in tiny_inputs().items()
    }
    policy = pyramid_attention_broadcast(spatial=2)
    subject = graphcache.compile(module, policy, backend="eager", example_inputs=inputs)
    engine = engine_of(subject, tmp_path)
    assert engine.dtype == torch.bfloat16
    with torch.no_grad():
        assert equal(engine(**inputs), subject(**inputs))


def test_it_stays_where_and_what_it_is(engine_path: Path) -> None:
    engine = load(engine_path)
    for moved in (
        engine.to("cpu"),
        engine.to(torch.float32),
        engine.to(torch.device("cpu"), torch.float32),
        engine.cpu(),
        engine.float(),
        engine.eval(),
        engine.requires_grad_(False),
    ):
        assert moved is engine
    for move in (
        lambda: engine.to("meta"),
        lambda: engine.to(torch.float16),
        engine.half,
        engine.bfloat16,
        lambda: nn.Sequential(engine).to(torch.float64),
    ):
        with pytest.raises(EngineError, match=r"float32 on cpu and cannot be"):
            move()
    with pytest.raises(EngineError, match="cannot be trained"):
        engine.train()
    with pytest.raises(EngineError, match="compiled already"):
        engine.compile()
    with pytest.raises(EngineError, match="load the engine again"):
        copy.deepcopy(engine)


def test_cpu_by_any_name(engine_path: Path) -> None:
    engine = load(engine_path, device="cpu:0")
    with torch.no_grad():
        engine(**tiny_inputs())
    assert engine.device == torch.device("cpu")


@pytest.mark.slow
def test_the_pipeline_of_diffusers(tmp_path: Path) -> None:
    cached = pipeline(ours)
    wanted = generate(cached)
    pipe = pipeline()
    now = lambda: pipe.current_timestep  # noqa: E731
    engine = engine_of(cached.transformer, tmp_path, timestep_callback=now)
    pipe.transformer = engine
    assert torch.equal(generate(pipe), wanted)
    assert torch.equal(generate(pipe), wanted)
    assert steps(engine)[: len(steps(cached.transformer))] == steps(cached.transformer)
    assert pipe.to("cpu") is pipe
    # The pipeline says when it is done, and so nothing is held.
    assert engine._graphcache_runner.clock.streams == {}
    with pytest.raises(EngineError, match=r"\[4, .*takes .*\[2, "):
        generate(pipe, clips=2)
    assert torch.equal(generate(pipe), wanted)


def test_nothing_of_the_model_is_left(engine_path: Path) -> None:
    engine = load(engine_path)
    assert engine.state_dict() == {}
    assert list(engine.modules()) == [engine]
