"""Engines against the compiled module that they were exported from.

    python -m benchmarks.engines
    python -m benchmarks.engines --quick

The same clips of moving digits by diffusers' own `CogVideoXPipeline`: compiled in the
process, and by engines loaded from disk. See the README beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import graphcache
from benchmarks.engine_tables import paragraphs
from benchmarks.machine import describe_machine
from benchmarks.method_rows import example_inputs
from benchmarks.timing import Samples, interleave
from graphcache.demo import Generator, Settings

OUTPUT = Path(__file__).parent / "results" / "engines_moving_digits_cpu.json"
_CPU = torch.device("cpu")
_CALLS, _BLOCKS = 16, 5


@dataclass(frozen=True)
class Case:
    """A policy and how it is lowered.

    Attributes:
        name: For the table.
        config: As for `graphcache.compile`.
        lowering: As for `graphcache.compile`.
    """

    name: str
    config: Callable[[], object]
    lowering: str


CASES = (
    Case("PAB", lambda: graphcache.pyramid_attention_broadcast(2), "specialize"),
    Case("First-block cache", lambda: graphcache.first_block_cache(0.1), "split"),
    Case("First-block cache", lambda: graphcache.first_block_cache(0.1), "conditional"),
)
BACKENDS = ("aot_inductor", "onnx")


@dataclass
class Subject:
    """Something that stands in the transformer's place."""

    module: Any
    clips: Tensor
    first_call: float | None = None
    export_seconds: float | None = None
    load_seconds: float | None = None
    files: dict[str, int] | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    with torch.no_grad(), Console(stderr=True).status("") as status:
        result = measure(options, lambda what: status.update(what))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    for text in paragraphs(result):
        print(f"{text}\n")
    print(f"written to {options.output}")


def measure(
    options: argparse.Namespace, notify: Callable[[str], None]
) -> dict[str, Any]:
    """Measure everything; plain values, ready for JSON."""
    settings = Settings(steps=options.steps, clips=options.clips)
    generator = Generator.load(settings)
    plain = generator.pipe.transformer
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            notify(f"{case.name}, {case.lowering}")
            rows += _measure_case(case, generator, plain, options, Path(folder), notify)
    return {
        "benchmark": "engines_moving_digits",
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "machine": describe_machine(_CPU),
        "settings": {
            "steps": options.steps,
            "clips": options.clips,
            "rounds": options.rounds,
            "dtype": "float32",
        },
        "rows": rows,
    }


def _measure_case(
    case: Case,
    generator: Generator,
    plain: nn.Module,
    options: argparse.Namespace,
    folder: Path,
    notify: Callable[[str], None],
) -> list[dict[str, Any]]:
    subjects = {"in process": _compiled(case, generator, plain)}
    for backend in options.backends:
        notify(f"{case.name}, {case.lowering}: {backend}")
        compiled = subjects["in process"].module
        subjects[backend] = _engine(compiled, backend, generator, folder / backend)
    generate = {name: _generation(generator, s.module) for name, s in subjects.items()}
    samples = interleave(generate, options.rounds, _CPU)
    calls = _calls({name: s.module for name, s in subjects.items()}, generator)
    base = subjects["in process"]
    return [
        _row(case, name, subject, base, samples, calls)
        for name, subject in subjects.items()
    ]


def _compiled(case: Case, generator: Generator, plain: nn.Module) -> Subject:
    module = graphcache.compile(
        plain,
        case.config(),
        lowering=case.lowering,
        scheduler=generator.pipe.scheduler,
        progress=False,
    )
    return Subject(module, _generation(generator, module)())


def _engine(
    compiled: nn.Module, backend: str, generator: Generator, path: Path
) -> Subject:
    started = time.perf_counter()
    graphcache.export(compiled, path, backend=backend, progress=False)
    exported = time.perf_counter()
    engine = graphcache.load(path, scheduler=generator.pipe.scheduler)
    loaded = time.perf_counter()
    inputs = example_inputs(generator)
    engine(**inputs)
    called = time.perf_counter()
    engine._reset_stateful_cache()
    return Subject(
        engine,
        _generation(generator, engine)(),
        first_call=called - loaded,
        export_seconds=exported - started,
        load_seconds=loaded - exported,
        files={file.name: file.stat().st_size for file in sorted(path.iterdir())},
    )


def _generation(generator: Generator, module: nn.Module) -> Callable[[], Tensor]:
    def run() -> Tensor:
        generator.pipe.transformer = module
        module.cache_stats.clear()  # type: ignore[operator, union-attr]
        return generator.generate()

    return run


def _calls(
    modules: dict[str, Any], generator: Generator
) -> dict[str, dict[str, float]]:
    """Median seconds of a call that computes and of one that reuses.

    Modules take turns in blocks of calls: threads of two runtimes would be in each
    other's way.
    """
    inputs = example_inputs(generator)
    found: dict[str, dict[str, list[float]]] = {
        name: {"compute": [], "reuse": []} for name in modules
    }
    for _ in range(_BLOCKS):
        for name, module in modules.items():
            for computed, seconds in _block(module, inputs):
                found[name]["compute" if computed else "reuse"].append(seconds)
    return {
        name: {kind: statistics.median(s) for kind, s in kinds.items() if s}
        for name, kinds in found.items()
    }


def _block(module: Any, inputs: dict[str, Any]) -> Iterator[tuple[bool, float]]:
    """Whether each of some calls computed, and its seconds; the first two left out.

    The inputs do not move, so that a decision from data is told by its threshold.
    """
    module._reset_stateful_cache()
    thresholds = dict(module.cache_thresholds)
    for index in range(_CALLS):
        even = index % 2 == 0
        module.cache_thresholds.update(
            {n: 0.0 for n in thresholds} if even else thresholds
        )
        started = time.perf_counter()
        with module.cache_context("measured", step_index=index, timestep=500):
            module(**inputs)
        seconds = time.perf_counter() - started
        if index > 1:
            yield all(module.cache_stats.steps[-1].computed.values()), seconds
    module.cache_thresholds.update(thresholds)


def _row(
    case: Case,
    name: str,
    subject: Subject,
    base: Subject,
    samples: dict[str, Samples],
    calls: dict[str, dict[str, float]],
) -> dict[str, Any]:
    expected = base.clips
    difference = (subject.clips - expected).abs().max() / expected.abs().max()
    ours = [step.computed for step in subject.module.cache_stats.steps]
    theirs = [step.computed for step in base.module.cache_stats.steps]
    return {
        "method": case.name,
        "lowering": case.lowering,
        "runs": name,
        "generation": samples[name].as_milliseconds(),
        "generation_ratio": samples[name].median / samples["in process"].median,
        "call_ms": {kind: value * 1e3 for kind, value in calls[name].items()},
        "call_ratio": {
            kind: value / calls["in process"][kind]
            for kind, value in calls[name].items()
        },
        "first_call_ms": _milliseconds(subject.first_call),
        "export_seconds": subject.export_seconds,
        "load_ms": _milliseconds(subject.load_seconds),
        "files": subject.files,
        "relative_difference": difference.item(),
        "same_decisions": ours[-len(theirs) :] == theirs,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="10 steps, into out/")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.rounds = 10, 1
        options.output = Path("out") / OUTPUT.name
    return options


if __name__ == "__main__":
    main()
