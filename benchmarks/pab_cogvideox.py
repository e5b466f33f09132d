"""Pyramid Attention Broadcast on CogVideoX: hooks, torch.compile and graphcache.

    python -m benchmarks.pab_cogvideox --size small
    python -m benchmarks.pab_cogvideox --device cuda --dtype bfloat16 --size all

Every row runs the same denoising loop; see the README beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import measure, report
from benchmarks.machine import describe_machine
from benchmarks.rows import ROWS
from benchmarks.workload import SIZES, SKIP_RANGE, WINDOW, make_workload

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = _parse(arguments)
    device, console = torch.device(options.device), Console()
    machine = describe_machine(device)
    sizes = [
        _measure_size(name, options, device, console)
        for name in _size_names(options.size, device)
    ]
    result = {
        "benchmark": "pab_cogvideox",
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "machine": machine,
        "settings": {
            "steps": options.steps,
            "rounds": options.rounds,
            "dtype": options.dtype,
            "spatial_attention_block_skip_range": SKIP_RANGE,
            "spatial_attention_timestep_skip_range": list(WINDOW),
        },
        "sizes": sizes,
    }
    for measured in sizes:
        report.show(console, measured, machine)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {options.output}")


def _measure_size(
    name: str, options: argparse.Namespace, device: torch.device, console: Console
) -> dict[str, Any]:
    with torch.no_grad(), console.status(name) as status:

        def notify(what: str) -> None:
            status.update(f"{SIZES[name].name}: {what}")

        work = make_workload(SIZES[name], options.steps, device, DTYPES[options.dtype])
        return measure.measure(work, options.rounds, options.rows, notify)


def _size_names(chosen: str, device: torch.device) -> list[str]:
    if chosen != "all":
        return [chosen]
    return [name for name in SIZES if name != "2b" or device.type == "cuda"]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pab_cogvideox",
        description="Time Pyramid Attention Broadcast on CogVideoX, several ways.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add: Callable[..., Any] = parser.add_argument
    add("--size", choices=[*SIZES, "all"], default="small", help="2b: CUDA only")
    add("--steps", type=int, default=50, help="steps of a generation")
    add("--rounds", type=int, default=9, help="timed generations of each row")
    add("--device", default="cpu", help="where to run")
    add("--dtype", choices=list(DTYPES), default="float32", help="of the model")
    add(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        default=list(ROWS),
        help="rows to measure",
    )
    add(
        "--output",
        type=Path,
        default=RESULTS / "pab_cogvideox.json",
        help="where to write the results",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
