"""``graphcache export`` and ``graphcache run``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import graphcache
from graphcache import demo, generation
from tests.test_cli import cogvideox, invoke, refused
from tests.test_pipeline import generate, pipeline

MODEL = demo.DEFAULT_MODEL


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the model of the demo, made by the command line."""
    path = tmp_path_factory.mktemp("engines") / "digits"
    done = invoke("export", MODEL, path, "--backend", "onnx", "--method", "first-block")
    assert done.exit_code == 0, done.output
    assert "weights.safetensors" in done.stdout
    return path


@pytest.mark.slow
def test_export_and_run(engine: Path, tmp_path: Path) -> None:
    done = invoke("run", engine, "7", "--steps", "5", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "5 steps" in done.stdout
    drawn = Image.open(tmp_path / generation.IMAGE)
    assert drawn.size == (6 * 96, 96)
    assert np.asarray(drawn).std() > 10


@pytest.mark.slow
def test_the_engine_draws_what_the_module_draws(engine: Path) -> None:
    config = graphcache.first_block_cache(0.3)
    pipe = pipeline(
        lambda p: graphcache.compile(
            p.transformer, config, backend="eager", scheduler=p.scheduler
        )
    )
    expected = generate(pipe, steps=8)
    pipe.transformer = graphcache.load(engine, scheduler=pipe.scheduler)
    pipe.transformer.cache_thresholds["first_block"] = 0.3
    assert torch.allclose(generate(pipe, steps=8), expected, atol=1e-3)
    assert pipe.transformer.cache_stats.reused["first_block"] > 0


@pytest.mark.slow
def test_what_does_not_fit_is_refused(engine: Path, tmp_path: Path) -> None:
    assert refused(invoke("run", engine, "cat"), "draws the digits 0 to 9, not cat")
    # The pipeline has drawn a progress bar before.
    other = invoke("run", engine, "3", "4")
    assert other.exit_code == 1
    assert "error: hidden_states is float32[4, 6" in other.stderr
    assert refused(invoke("run", engine, "--model", tmp_path), "no model_index.json")
    assert refused(invoke("export", MODEL, engine), "exists")


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "model", tmp_path / "engine"
    cogvideox().save_pretrained(path)
    assert refused(invoke("run", tmp_path / "none"), "does not exist")
    assert refused(invoke("export", tmp_path, out), "has no config.json")
    assert refused(invoke("export", path, out, "--dtype", "int8"), "no floating-point")
    assert refused(invoke("export", path, out, "--method", "x"), "unknown method 'x'")
    assert refused(
        invoke("export", path, out, "--backend", "x"), "unknown engine backend"
    )
    assert refused(invoke("export", path, out, "--option", "x"), "NAME=VALUE")
    unknown = invoke("export", path, out, "--option", "max_autotun=true")
    assert unknown.exit_code == 1
    assert "error: inductor has no option max_autotun" in unknown.stderr
    assert not out.exists()


def test_options() -> None:
    given = ("opset=21", "prepack=true", "compute_capability=8.9", "path=a=b")
    assert generation.parse_options(given) == {
        "opset": 21,
        "prepack": True,
        "compute_capability": "8.9",
        "path": "a=b",
    }


class Pipeline:
    """A pipeline that gives images, as those of diffusers do."""

    def __init__(self) -> None:
        self.scheduler = SimpleNamespace(timesteps=torch.tensor([500]))
        self.given: dict[str, Any] = {}

    def register_modules(self, transformer: Any) -> None:
        """Take the engine."""
        self.transformer = transformer

    def __call__(self, **kwargs: Any) -> Any:
        """Two images, one black and one white."""
        self.given = kwargs
        images = np.stack([np.zeros((128, 96, 3)), np.ones((128, 96, 3))])
        return SimpleNamespace(images=images)


def test_a_pipeline_with_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Pipeline()
    loaded: dict[str, Any] = {}

    def from_pretrained(path: str, **kwargs: Any) -> Pipeline:
        loaded.update(path=path, **kwargs)
        return made

    engine = SimpleNamespace(cache_stats="steps")
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr(graphcache, "load", lambda path, scheduler: engine)
    (tmp_path / "model_index.json").write_text(json.dumps({}))
    out = tmp_path / "out"
    done = invoke(
        "run", "engine", "a cat", "a dog", "--model", tmp_path, "--output", out
    )
    assert done.exit_code == 0, done.output
    assert loaded == {"path": str(tmp_path), "transformer": None}
    assert made.transformer is engine
    assert made.given["prompt"] == ["a cat", "a dog"]
    drawn = np.asarray(Image.open(out / generation.IMAGE))
    assert drawn.shape == (256, 96, 3)
    assert drawn[:128].max() == 0
    assert drawn[128:].min() == 255
