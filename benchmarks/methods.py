"""All methods on one trained model: what each skips, and what its clips lose by it.

    python -m benchmarks.methods
    python -m benchmarks.methods --quick

Clips of moving digits by diffusers' own `CogVideoXPipeline`. Beside the methods stands
the plain way to compute less: fewer steps, without a cache. See the README beside this
file.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import graphcache
from benchmarks import calibrations
from benchmarks.calibrations import Calibrations
from benchmarks.machine import describe_machine
from benchmarks.method_figure import FIGURE, save_figure
from benchmarks.method_rows import (
    Row,
    describe,
    example_inputs,
    graph_breaks,
    method_row,
    quality,
    uncached_rows,
)
from benchmarks.method_settings import METHODS, Method, left_out
from benchmarks.method_tables import paragraphs
from benchmarks.timing import Notify, Samples, interleave
from graphcache.demo import Generator, Settings
from graphcache.report import compare

OUTPUT = Path(__file__).parent / "results" / "methods_moving_digits_cpu.json"
QUICK = ("pab-2", "first-block-0.1", "magcache-0.2")
TIMED = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Parts of the steps with which the uncached transformer is timed too."""
_QUICK_STEPS = 10
_CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    with torch.no_grad(), Console(stderr=True).status("") as status:
        result = measure(options, lambda what: status.update(what))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    save_figure(result, options.figure)
    for text in paragraphs(result):
        console.print(f"{text}\n", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {options.output} and {options.figure}")


def measure(options: argparse.Namespace, notify: Notify) -> dict[str, Any]:
    """Measure everything.

    Args:
        options: Of the command line.
        notify: Told what is being done.

    Returns:
        Plain values, ready for JSON.
    """
    given = _calibrations(options, notify)
    settings = Settings(steps=options.steps, clips=options.clips)
    generator = Generator.load(settings)
    plain = generator.pipe.transformer
    notify("uncached, eager")
    reference = generator.generate()
    base = graphcache.explain(
        plain, graphcache.never_reuse(), **example_inputs(generator)
    )
    step = base.variants[0].flops
    control = _control(generator, reference, notify)
    chosen = [method for method in METHODS if method.key in options.methods]
    whole_loop, *shorter = uncached_rows(
        plain, options.backend, _timed_steps(options.steps), step
    )
    for row in (whole_loop, *shorter):
        notify(f"warming up {row.key}")
        row.warm_up(generator)
    cached = _warm(chosen, generator, plain, given, options.backend, notify)
    rows = [whole_loop, *cached, *shorter]
    _check_costs(rows, step)
    samples, breaks = _time(rows, generator, options.rounds, notify)
    baseline = samples[whole_loop.key]
    whole = step * options.steps
    return {
        "benchmark": "methods_moving_digits",
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "machine": describe_machine(_CPU),
        "settings": _settings(options, settings),
        "model": _model(plain, generator, step),
        "rows": {
            row.key: describe(row, samples[row.key], baseline, reference, whole)
            for row in rows
        },
        "graph_breaks_while_timed": breaks,
        "fewer_steps": control,
        "left_out": left_out(generator.pipe.scheduler, base.program),
    }


def _calibrations(options: argparse.Namespace, notify: Notify) -> Calibrations:
    """What is stored for this number of steps, or measured now."""
    found = None if options.calibrate else calibrations.load(options.steps)
    if found is None:
        found = calibrations.measure(options.steps, notify)
    if options.calibrate:
        calibrations.save(found)
    return found


def _control(
    generator: Generator, reference: Tensor, notify: Notify
) -> list[dict[str, Any]]:
    """Clips of every smaller number of steps, uncached and eager."""
    steps = generator.settings.steps
    found = []
    for count in range(math.ceil(min(TIMED) * steps), steps):
        notify(f"uncached, {count} steps")
        row = Row("", "", "", generator.pipe.transformer, count, {})
        clips = row.run(generator)
        found.append(
            {
                "steps": count,
                "flops_kept": count / steps,
                **quality(compare(reference, clips)),
            }
        )
    return found


def _timed_steps(steps: int) -> list[int]:
    return [steps, *(round(part * steps) for part in TIMED)]


def _warm(
    methods: Sequence[Method],
    generator: Generator,
    plain: nn.Module,
    given: Calibrations,
    backend: str,
    notify: Notify,
) -> list[Row]:
    """Compile the methods and warm them up."""
    made = []
    for method in methods:
        notify(f"compiling {method.key}")
        row = method_row(method, generator, plain, given, backend)
        row.warm_up(generator)
        made.append(row)
    return made


def _check_costs(rows: Sequence[Row], step: int) -> None:
    """The outcome in which everything computes costs what the plain model does.

    Raises:
        RuntimeError: If it does not: the columns could not be compared then.
    """
    for row in rows:
        full = next(iter(row.costs.values()))
        if full != step:
            raise RuntimeError(
                f"{row.key}: a full step is {full} FLOPs, the plain model's is {step}"
            )


def _time(
    rows: Sequence[Row], generator: Generator, rounds: int, notify: Notify
) -> tuple[dict[str, Samples], int]:
    """Generations of every row, in turn, and the graphs broken meanwhile."""
    before = graph_breaks()
    found = {row.key: Samples() for row in rows}
    # What is compiled stays: a collection between two rows need not look at it.
    gc.collect()
    gc.freeze()
    for index in range(rounds):
        timed = interleave(
            {row.key: functools.partial(row.run, generator) for row in rows},
            1,
            _CPU,
            lambda key: notify(f"round {index + 1} of {rounds}, {key}"),  # noqa: B023
        )
        for key, sample in timed.items():
            found[key].seconds += sample.seconds
    gc.unfreeze()
    return found, graph_breaks() - before


def _settings(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    return {
        "steps": settings.steps,
        "clips": settings.clips,
        "digits": settings.labels,
        "seed": settings.seed,
        "guidance": settings.guidance,
        "scheduler": "CogVideoXDDIMScheduler",
        "backend": options.backend,
        "rounds": options.rounds,
        "dtype": "float32",
        "calibration_seeds": list(calibrations.SEEDS),
    }


def _model(plain: Any, generator: Generator, step: int) -> dict[str, Any]:
    config, parameters = plain.config, list(plain.parameters())
    inputs = example_inputs(generator)
    _, frames, _, height, width = inputs["hidden_states"].shape
    patches = (height // config.patch_size) * (width // config.patch_size)
    return {
        "name": "moving-digits",
        "layers": config.num_layers,
        "width": config.num_attention_heads * config.attention_head_dim,
        "tokens": frames * patches + inputs["encoder_hidden_states"].shape[1],
        "batch": len(inputs["hidden_states"]),
        "parameters": sum(p.numel() for p in parameters),
        "weight_bytes": sum(p.nbytes for p in parameters),
        "flops_per_step": step,
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods",
        description="Compare all methods on the trained moving-digits model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    keys = [method.key for method in METHODS]
    add: Callable[..., Any] = parser.add_argument
    add("--rounds", type=int, default=3, help="timed generations of each row")
    add("--steps", type=int, default=50, help="steps of a generation")
    add("--clips", type=int, default=4, help="clips of a generation, in one batch")
    add("--backend", default="inductor", help="of graphcache.compile")
    add("--threads", type=int, default=2, help="threads of torch")
    add("--methods", nargs="+", choices=keys, default=keys, metavar="KEY", help="which")
    add("--calibrate", action="store_true", help="measure the calibrations anew")
    add("--quick", action="store_true", help="eager, 10 steps, 1 round, few methods")
    add("--output", type=Path, help="where to write the results")
    add("--figure", type=Path, help="where to draw")
    options = parser.parse_args(arguments)
    if options.quick and options.calibrate:
        parser.error("--calibrate is for the number of steps of the real benchmark")
    if options.quick:
        options.backend, options.steps, options.rounds = "eager", _QUICK_STEPS, 1
        options.methods = list(QUICK)
    out = Path("out")
    options.output = options.output or (
        out / "methods_quick.json" if options.quick else OUTPUT
    )
    options.figure = options.figure or (
        out / "methods_quick.png" if options.quick else FIGURE
    )
    return options


if __name__ == "__main__":
    main()
