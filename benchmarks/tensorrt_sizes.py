"""What TensorRT engines hold, with weights as inputs and built in.

    python -m benchmarks.tensorrt_sizes

Needs TensorRT for RTX (make setup-tensorrt). Its builder needs no GPU, and nothing is
run. The model is a CogVideoX with random weights. See the README beside this file.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

import graphcache
from benchmarks.machine import describe_machine
from benchmarks.tensorrt_tables import paragraphs
from graphcache.inspection import example_inputs
from tests.backends.tensorrt_on_cpu import copy_package, missing, pretend_a_gpu

OUTPUT = Path(__file__).parent / "results" / "tensorrt_sizes_cpu.json"
CAPABILITY = "8.9"
LAYERS, HEADS, WIDTH = 8, 8, 64
METHODS: dict[str, tuple[Callable[[], object], str]] = {
    "PAB": (lambda: graphcache.pyramid_attention_broadcast(2), "specialize"),
    "PAB, one engine": (
        lambda: graphcache.pyramid_attention_broadcast(2),
        "conditional",
    ),
    "First-block cache": (graphcache.first_block_cache, "split"),
    "First-block cache, one engine": (graphcache.first_block_cache, "conditional"),
}


def main() -> None:
    """Build, print and write."""
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        if not torch.cuda.is_available():
            copy_package(Path(folder))
            sys.path.insert(0, folder)
            pretend_a_gpu()
        result = measure(Path(folder) / "engines")
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")
    for text in paragraphs(result):
        print(f"{text}\n")


def measure(folder: Path) -> dict[str, Any]:
    """Export every method both ways; plain values, ready for JSON."""
    torch.manual_seed(0)
    model = transformer().eval().half()
    inputs = example_inputs(model)
    rows = []
    for name, (config, lowering) in METHODS.items():
        compiled = graphcache.compile(
            model, config(), backend="eager", example_inputs=inputs
        )
        for weights in ("inputs", "constants"):
            started = time.perf_counter()
            path = graphcache.export(
                compiled,
                folder / f"{len(rows)}",
                backend="tensorrt",
                lowering=lowering,
                options={"weights": weights, "compute_capability": CAPABILITY},
                progress=False,
            )
            rows.append(
                {
                    "method": name,
                    "weights": weights,
                    "seconds": time.perf_counter() - started,
                    "engines": sizes(path, "*.engine"),
                    "weights_bytes": sum(sizes(path, "*.safetensors").values()),
                }
            )
    machine = describe_machine(torch.device("cpu"))
    for package in ("tensorrt-rtx", "torch-tensorrt-rtx", "onnx", "onnxscript"):
        machine["packages"][package] = importlib.metadata.version(package)
    return {
        "benchmark": "tensorrt_sizes",
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "machine": machine,
        "model": f"CogVideoX, {LAYERS} layers of width {HEADS * WIDTH}, fp16",
        "capability": CAPABILITY,
        "rows": rows,
    }


def transformer() -> CogVideoXTransformer3DModel:
    """A CogVideoX with random weights."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH,
        num_layers=LAYERS,
        in_channels=16,
        out_channels=16,
        time_embed_dim=256,
        text_embed_dim=256,
        max_text_seq_length=16,
        sample_width=16,
        sample_height=16,
        sample_frames=9,
    )


def sizes(path: Path, pattern: str) -> dict[str, int]:
    """Bytes of files, by name."""
    return {file.stem: file.stat().st_size for file in sorted(path.glob(pattern))}


if __name__ == "__main__":
    main()
