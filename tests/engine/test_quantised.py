"""Engines of quantised modules hold the tensors that the weights are made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch

import graphcache
from graphcache import EngineError, fora
from graphcache.engine.aot_inductor import _library
from graphcache.engine.formats import WEIGHTS_FILE
from tests.quantised import GGUF, TORCHAO, Make, generate, inputs

_FRESH = """
import sys, torch, graphcache
engine = graphcache.load(sys.argv[1])
given, wanted = torch.load(sys.argv[2])
torch.testing.assert_close(engine(**given)[0], wanted, rtol=1e-3, atol=2e-2)
assert not {"torchao", "gguf", "diffusers"} & sys.modules.keys()
"""


def exported(make: Make, folder: Path, backend: str) -> Path:
    """An engine of the module behind FORA, and the outputs that it should give."""
    compiled = graphcache.compile(make(), fora(2), backend="eager")
    torch.save((inputs(compiled), generate(compiled)[0]), folder / "call.pt")
    return graphcache.export(
        compiled, folder / "engine", backend=backend, progress=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "part"),
    [(TORCHAO["int8-dynamic"], "qdata"), (GGUF["Q8_0"], "data")],
)
def test_loads_without_the_library_of_the_weights(
    make: Make, part: str, tmp_path: Path
) -> None:
    path = exported(make, tmp_path, "aot_inductor")
    with safetensors.safe_open(path / WEIGHTS_FILE, "pt") as file:
        assert f"weight.blocks.0.attn.to_q.weight.{part}" in file.keys()
    command = [sys.executable, "-c", _FRESH, path, tmp_path / "call.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_onnx_takes_what_it_can_express(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    engine = graphcache.load(exported(TORCHAO["int8-weights"], tmp_path, "onnx"))
    compiled = graphcache.compile(TORCHAO["int8-weights"](), fora(2), backend="eager")
    want = generate(compiled)
    for ours, theirs in zip(generate(engine), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_onnx_names_what_it_cannot_express(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(EngineError, match=r"aten\.view\.dtype.*blocks\.0\.attn\.to_q"):
        exported(GGUF["Q8_0"], tmp_path, "onnx")
    assert not (tmp_path / "engine").exists()


def test_a_missing_library_is_named() -> None:
    error = RuntimeError("Could not find schema for bitsandbytes::gemv_4bit.")
    assert "import the library that brings it" in _library(error)
    assert "bitsandbytes" in _library(error)
    assert not _library(RuntimeError("damaged"))
