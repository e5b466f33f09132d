"""The command line, and the demo behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import graphcache
from graphcache import demo, inspection
from graphcache.cli import app
from tests import pipelines
from tests.models import tiny

MODEL = demo.DEFAULT_MODEL


def invoke(*arguments: str | Path) -> Result:
    """Run the command line."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, text: str) -> bool:
    """Whether the command failed with an error of one line that has `text`."""
    error = " ".join(result.stderr.split())
    return result.exit_code == 1 and error.startswith("error:") and text in error


def cogvideox(**kwargs: Any) -> CogVideoXTransformer3DModel:
    """A small CogVideoX with random weights."""
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 8,
        "max_text_seq_length": 4,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 9,
    }
    return CogVideoXTransformer3DModel(**(sizes | kwargs)).eval()


def test_help_names_the_commands() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "demo" in result.stdout
    assert all(name in result.stdout for name in ("inspect", "export", "run"))


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    assert refused(invoke("inspect", tmp_path), "has no config.json")
    assert refused(invoke("demo", "--model", tmp_path), "has no config.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", ["", "scheduler"])
def test_an_incomplete_model_is_refused(tmp_path: Path, kept: str) -> None:
    for name in filter(None, ("transformer", kept)):
        (tmp_path / name).symlink_to(MODEL / name)
    result = invoke("demo", "--model", tmp_path)
    missing = "embeddings.safetensors" if kept else "scheduler_config.json"
    assert refused(result, f"{missing} is missing")


def test_a_model_that_diffusers_cannot_load_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "NoSuchModel"}')
    assert refused(invoke("inspect", tmp_path), "diffusers cannot load")


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    cogvideox().save_pretrained(tmp_path, safe_serialization=False)
    assert refused(invoke("inspect", tmp_path), "safetensors")


def test_an_unknown_backend_is_refused() -> None:
    assert refused(invoke("demo", "--backend", "nope"), "unknown backend 'nope'")


@pytest.mark.parametrize(
    "option", [("--steps", "0"), ("--clips", "0"), ("--skip-range", "0")]
)
def test_numbers_out_of_range_are_refused(option: tuple[str, str]) -> None:
    result = invoke("demo", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr


def test_inspect_prints_the_plan() -> None:
    result = invoke("inspect", MODEL / "transformer")
    assert result.exit_code == 0, result.output
    for layer in range(6):
        assert f"transformer_blocks.{layer}.attn1 (joint)" in result.stdout
    found = "CogVideoXTransformer3DModel: 6 attention, 6 feed-forward, 6 block regions"
    assert result.stdout.startswith(found)
    # 6 layers hold f32[2, 100, 128].
    assert f"buffers: {6 * 2 * 100 * 128 * 4} bytes a stream" in result.stdout


def test_inspect_prints_the_plan_of_another_method() -> None:
    result = invoke("inspect", MODEL / "transformer", "--method", "first-block")
    assert result.exit_code == 0, result.output
    assert "lowering split" in result.stdout
    assert "first_block=reuse" in result.stdout
    unknown = invoke("inspect", MODEL / "transformer", "--method", "magic")
    assert refused(unknown, "unknown method 'magic'")


def test_inspect_reads_a_pipeline_or_a_config(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("Fn_compute_blocks: 1\nresidual_diff_threshold: 0.2\n")
    model = pipelines.saved(pipelines.auraflow, tmp_path / "model")
    options = ("--prompt", "a cat", "--height", "16", "--width", "32")
    result = invoke("inspect", model, *options, "--config", policy)
    assert result.exit_code == 0, result.output
    found = "AuraFlowTransformer2DModel: 3 attention, 4 feed-forward, 3 block regions"
    assert result.stdout.startswith(found)
    assert "dbcache=reuse" in result.stdout
    assert refused(invoke("inspect", MODEL, "--prompt", "3"), "no model_index.json")


def test_inspect_passes_the_policy_on() -> None:
    path = MODEL / "transformer"
    assert refused(invoke("inspect", path, "--cross", "2"), "policy cross matches none")
    window = invoke("inspect", path, "--spatial", "2", "--window", "800", "100")
    assert refused(window, "is not ordered")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rotary_positional_embeddings": True},
        {
            "use_rotary_positional_embeddings": True,
            "patch_size_t": 2,
            "patch_bias": False,
            "ofs_embed_dim": 8,
        },
    ],
    ids=["sincos", "rotary", "1.5-image-to-video"],
)
def test_example_inputs_are_what_the_transformer_takes(config: dict[str, Any]) -> None:
    transformer = cogvideox(**config)
    inputs = inspection.example_inputs(transformer)
    with torch.no_grad():
        output = transformer(**inputs).sample
    assert output.shape == inputs["hidden_states"].shape
    assert len(graphcache.trace(transformer, _pab(), **inputs).gates) == 1


def _pab() -> tuple[graphcache.Policy, ...]:
    return graphcache.pyramid_attention_broadcast(spatial=2)


def test_example_inputs_of_another_class_are_refused() -> None:
    with pytest.raises(graphcache.GraphCacheError, match="this is TinyTransformer"):
        inspection.example_inputs(tiny())


class FakeGenerator:
    """Calls the module in place of a pipeline, on more rows at every call."""

    def __init__(self, growing: bool = False) -> None:
        self.pipe = self
        self.transformer: nn.Module = nn.Identity()
        self.growing = growing
        self.rows = 2

    def generate(self) -> Tensor:
        """f32[1, 1, 1, 8, 8]."""
        self.rows += self.growing
        self.transformer(torch.zeros(self.rows, 8))
        return torch.zeros(1, 1, 1, 8, 8)


class Breaking(nn.Module):
    """A module that Dynamo cannot take in one graph."""

    def forward(self, x: Tensor) -> Tensor:
        """Add, break, multiply."""
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2


def _measure(module: nn.Module, generator: FakeGenerator) -> Any:
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", dynamic=False)
    variants = [("plain", module), ("compiled", compiled)]
    return demo.measure(generator, variants, log=lambda text: None)  # type: ignore[arg-type]


def test_graph_breaks_are_counted() -> None:
    plain, compiled = _measure(Breaking(), FakeGenerator())
    assert (plain.graphs_compiled, plain.graph_breaks, plain.recompiles) == (0, 0, 0)
    assert compiled.graph_breaks == 1
    assert compiled.graphs_compiled == 2
    assert compiled.recompiles == 0


def test_recompiles_are_counted() -> None:
    plain, compiled = _measure(nn.Linear(8, 8), FakeGenerator(growing=True))
    assert plain.recompiles == 0
    # One more for every timed generation.
    assert compiled.recompiles == len(compiled.seconds) == 3
    assert compiled.graphs_compiled == 4
    assert compiled.graph_breaks == 0


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    result = invoke(
        *("demo", "--backend", "eager", "--steps", "8", "--clips", "2"),
        *("--output", tmp_path),
    )
    assert result.exit_code == 0, result.output
    names = {"clips.png", "schedule.png", "results.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert torch.get_num_threads() == before

    results = json.loads((tmp_path / "results.json").read_text())
    uncached, cached = results["runs"].values()
    # Timesteps 999, 874, ... 124: odd steps are reused inside (100, 800).
    assert cached["regions"] == {"spatial": {"computed": 30, "reused": 18}}
    assert cached["buffer_bytes_planned"] == cached["buffer_bytes_measured"] > 0
    assert cached["graphs_compiled"] == 2
    assert cached["recompiles"] == cached["graph_breaks"] == 0
    assert uncached["graphs_compiled"] == 0
    assert 10 < cached["psnr_db"] < 100
    assert 0 < cached["ssim"] < 1
    assert results["settings"]["steps"] == 8
    for label, *_ in results["table"]:
        assert label in result.stdout


@pytest.mark.slow
def test_demo_without_reuse_is_identical(tmp_path: Path) -> None:
    arguments = ("--backend", "eager", "--steps", "3", "--clips", "1")
    result = invoke("demo", *arguments, "--skip-range", "1", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text())
    _, cached = results["runs"].values()
    assert cached["psnr_db"] is None
    assert cached["ssim"] == 1.0
    assert cached["regions"]["spatial"]["reused"] == 0
