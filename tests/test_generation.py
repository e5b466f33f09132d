"""``graphcache export`` and ``graphcache run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import graphcache
from graphcache import demo, folders, generation, pictures
from graphcache.engine import formats
from graphcache.pictures import save_output
from tests import pipelines
from tests.engine import memory
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
    drawn = Image.open(tmp_path / pictures.IMAGE)
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


@pytest.fixture(name="memory")
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's programs stay in this process, and are not compiled."""
    monkeypatch.setitem(formats._FORMATS, memory.NAME, memory.LOCATION)


WHOLE: dict[str, tuple[str, dict[str, int]]] = {
    "auraflow": ("a red cat", {"height": 16, "width": 24}),
    "classes": ("3", {}),
    "cogvideox": ("a red cat", {"height": 32, "width": 32, "frames": 9}),
}


def drawn(path: Path) -> Any:
    """The pixels of a picture, or of the last frame of a clip."""
    with Image.open(path) as image:
        image.seek(getattr(image, "n_frames", 1) - 1)
        return np.asarray(image.convert("RGB"))


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    "name",
    ["auraflow", "cogvideox", pytest.param("classes", marks=pytest.mark.slow)],
)
def test_any_pipeline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lines are longer than this, and none is wrapped or cut.
    monkeypatch.setenv("COLUMNS", "40")
    prompt, sizes = WHOLE[name]
    given = [text for size in sizes for text in (f"--{size}", str(sizes[size]))]
    model = pipelines.saved(getattr(pipelines, name), tmp_path / "model")
    policy, engine = tmp_path / "policy.yaml", tmp_path / "engine"
    policy.write_text("{method: first_block_cache, threshold: 0.3}")
    options = ("--backend", memory.NAME, "--config", policy)
    done = invoke("export", model, engine, "--prompt", prompt, *given, *options)
    assert done.exit_code == 0, done.output
    # What is generated needs no transformer.
    (model / "transformer").rename(tmp_path / "transformer")
    out = ("--steps", "4", "--seed", "3", "--output", tmp_path / "ours")
    done = invoke("run", engine, prompt, "--model", model, *given, *out)
    assert done.exit_code == 0, done.output
    assert "4 steps" in done.stdout
    (ours,) = (tmp_path / "ours").iterdir()
    assert f"written to {ours}\n" in done.stdout
    assert ours.suffix == (".gif" if name == "cogvideox" else ".png")
    # The same pipeline in Python, compiled by the same policy.
    (tmp_path / "transformer").rename(model / "transformer")
    pipe = folders.load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = graphcache.compile(
        pipe.transformer.eval(), policy, backend="eager", scheduler=pipe.scheduler
    )
    request = folders.Request((prompt,), **sizes, steps=4, seed=3)
    output = folders.generate(pipe, folders.arguments(pipe, request))
    theirs = save_output(output, tmp_path / "theirs")
    assert np.array_equal(drawn(ours), drawn(theirs))
    assert drawn(ours).std() > 1


@pytest.mark.usefixtures("memory")
def test_another_size_than_the_engines_is_refused(tmp_path: Path) -> None:
    model = pipelines.saved(pipelines.auraflow, tmp_path / "model")
    engine = tmp_path / "engine"
    sizes = ("--height", "16", "--width", "16")
    options = ("--backend", memory.NAME, "--method", "fora")
    done = invoke("export", model, engine, "--prompt", "a", *sizes, *options)
    assert done.exit_code == 0, done.output
    larger = ("--height", "24", "--width", "16", "--steps", "2")
    other = invoke("run", engine, "a", "--model", model, *larger)
    assert other.exit_code == 1
    assert "error: hidden_states is float32[2, 4, 12, 8]" in other.stderr
    assert refused(invoke("run", engine, "--model", model), "give a prompt")


def test_one_thing_says_what_to_cache(tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("{method: fora, intervall: 2}")
    both = ("--config", policy, "--method", "fora")
    assert refused(invoke("inspect", MODEL, *both), "--config and --method both say")
    both = ("--method", "fora", "--cross", "2")
    assert refused(invoke("inspect", MODEL, *both), "--method and --spatial, --temp")
    out = tmp_path / "e"
    wrong = invoke("export", MODEL, out, "--config", policy)
    assert refused(wrong, "p.yaml: config: fora has no 'intervall': did you mean")
    none = invoke("export", MODEL, out, "--config", tmp_path / "none.json")
    assert refused(none, "none.json cannot be read")
    assert not out.exists()
