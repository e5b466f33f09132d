"""One size measured: every row warmed up, then timed in interleaved rounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks import overhead
from benchmarks.rows import ROWS, Row, WarmUp, warm_up
from benchmarks.timing import Notify, Samples, interleave, timed
from benchmarks.workload import Workload, generate

PAIRS = 10
"""Computed and reused steps timed one by one in each round."""

_FIRST_TIMESTEP = 799
_TOLERANCE = 1e-2
"""Of the largest latent, over a whole generation in fp32; rounding alone differs."""


def measure(
    work: Workload, rounds: int, keys: Sequence[str], notify: Notify
) -> dict[str, Any]:
    """Measure the rows at one size.

    Args:
        work: What to run.
        rounds: Timed generations of each row.
        keys: Keys of `ROWS`.
        notify: Told what is being done.

    Returns:
        Plain values, ready for JSON.

    Raises:
        RuntimeError: If a row computes something else than it should.
    """
    rows, warm = {}, {}
    for key in (key for key in ROWS if key in keys):
        notify(f"warming up {key}")
        rows[key] = ROWS[key](work)
        warm[key] = warm_up(rows[key], work)
    errors = check_latents(work, rows, warm)
    samples, steps = time_rounds(work, rows, rounds, notify)
    return {
        **describe(work),
        "loop": samples.pop("loop").as_milliseconds(),
        "rows": {
            key: describe_row(row, warm[key], samples, key) | {"error": errors[key]}
            for key, row in rows.items()
        },
        "steps": None if steps is None else describe_steps(work, steps),
        "graphcache": inspect_ours(work, rows["graphcache"])
        if "graphcache" in rows
        else None,
    }


def describe(work: Workload) -> dict[str, Any]:
    """The model and its schedule."""
    config, computes = work.transformer.config, work.computes()
    parameters = list(work.transformer.parameters())
    return {
        "size": work.size.name,
        "layers": config.num_layers,
        "width": config.num_attention_heads * config.attention_head_dim,
        "tokens": work.tokens,
        "batch": work.embeddings.shape[0],
        "parameters": sum(p.numel() for p in parameters),
        "weight_bytes": sum(p.nbytes for p in parameters),
        "steps_computed": sum(computes),
        "steps_reused": len(computes) - sum(computes),
    }


def check_latents(
    work: Workload, rows: Mapping[str, Row], warm: Mapping[str, WarmUp]
) -> dict[str, float | None]:
    """How far each row's final latents are from its reference's, at most.

    Raises:
        RuntimeError: If any is not finite, or in fp32 further than rounding explains.
    """
    errors: dict[str, float | None] = {}
    for key, row in rows.items():
        latents, reference = warm[key].latents, warm.get(row.reference or "")
        if not latents.isfinite().all():
            raise RuntimeError(f"{key}: the latents are not finite")
        errors[key] = None
        if reference is not None:
            error = float((latents - reference.latents).abs().max())
            errors[key] = error
            limit = _TOLERANCE * float(reference.latents.abs().max())
            if latents.dtype is torch.float32 and error > limit:
                raise RuntimeError(f"{key}: the latents are off by {error:.2e}")
    return errors


def time_rounds(
    work: Workload, rows: Mapping[str, Row], rounds: int, notify: Notify
) -> tuple[dict[str, Samples], dict[str, Samples] | None]:
    """Generations of every row, and single steps where they can be compared."""
    generations: dict[str, Callable[[], object]] = {
        key: functools.partial(row.run, work) for key, row in rows.items()
    }
    generations["loop"] = functools.partial(run_loop_alone, work)
    compare = "graphcache" in rows and "ideal" in rows
    steps = {kind: Samples() for kind in ("compile", "compute", "ideal", "reuse")}
    totals = {key: Samples() for key in generations}
    for index in range(rounds):
        found = interleave(
            generations,
            1,
            work.device,
            lambda key: notify(f"round {index + 1} of {rounds}, {key}"),  # noqa: B023
        )
        for key, sample in found.items():
            totals[key].seconds += sample.seconds
        if compare:
            time_steps(work, rows, steps)
    return totals, steps if compare else None


def run_loop_alone(work: Workload) -> None:
    """The loop with a transformer that does nothing: what every row pays besides."""
    prediction = torch.zeros_like(work.inputs(0)["hidden_states"])
    generate(lambda **_: (prediction,), work)


def time_steps(
    work: Workload, rows: Mapping[str, Row], steps: Mapping[str, Samples]
) -> None:
    """Single steps in turn: plain compiled, ours computing; hand-written, ours reusing.

    The first pair is not counted.
    """
    ideal, ours = rows["ideal"].parts, rows["graphcache"]
    rows["graphcache"].reset()
    for index in range(2 * PAIRS + 2):
        timestep = _FIRST_TIMESTEP - index
        work.clock.timestep = timestep
        inputs = work.inputs(timestep)
        bare = {name: inputs[name] for name in inputs if name != "return_dict"}
        if index % 2 == 0:
            kinds = {
                "compile": functools.partial(ideal["compute"], **inputs),
                "compute": functools.partial(ours.step, **inputs),
            }
        else:
            kinds = {
                "ideal": functools.partial(
                    ideal["reuse"], **bare, cached=ideal["cached"]
                ),
                "reuse": functools.partial(ours.step, **inputs),
            }
        for kind, call in kinds.items():
            seconds = timed(call, work.device)
            if index >= 2:
                steps[kind].seconds.append(seconds)


def describe_row(
    row: Row, warm: WarmUp, samples: Mapping[str, Samples], key: str
) -> dict[str, Any]:
    """One row of the table."""
    median = samples[key].median
    compiles = warm.graphs > 0
    return {
        "label": row.label,
        **samples[key].as_milliseconds(),
        "over_eager": _ratio(median, samples.get("eager")),
        "over_ideal": _ratio(median, samples.get("ideal")),
        "graphs": warm.graphs,
        "graph_breaks": warm.breaks,
        "recompiles_while_timed": row.graphs - warm.graphs,
        "graph_calls": warm.calls if compiles else None,
        "compile_seconds": warm.first_seconds - median if compiles else 0.0,
        "held_bytes": warm.held_bytes,
        "peak_bytes": warm.peak_bytes,
    }


def describe_steps(work: Workload, steps: Mapping[str, Samples]) -> dict[str, Any]:
    """Single steps, and the generation that the ideal ones would add up to."""
    computes = work.computes()
    reused = len(computes) - sum(computes)
    plain, ideal = steps["compile"].median, steps["ideal"].median
    return {
        "plain_compiled": steps["compile"].as_milliseconds(),
        "graphcache_compute": steps["compute"].as_milliseconds(),
        "compute_over_plain": steps["compute"].median / plain,
        "handwritten_reuse": steps["ideal"].as_milliseconds(),
        "graphcache_reuse": steps["reuse"].as_milliseconds(),
        "reuse_over_handwritten": steps["reuse"].median / ideal,
        "ideal_sum_ms": (sum(computes) * plain + reused * ideal) * 1e3,
    }


def inspect_ours(work: Workload, row: Row) -> dict[str, Any]:
    """graphcache's own counters, host time and memory."""
    compiled = row.parts["compiled"]
    row.statistics().clear()  # type: ignore[misc]
    row.run(work)
    stats = compiled.cache_stats
    computed = sum(all(step.computed.values()) for step in stats.steps)
    if computed != sum(work.computes()):
        raise RuntimeError(f"graphcache computed {computed} steps, not what PAB does")
    host = overhead.host_time_per_call(
        compiled, work.inputs(_FIRST_TIMESTEP), work.clock
    )
    return {
        "host_time": {
            kind: {
                "microseconds": found.microseconds,
                "target_microseconds": found.target,
                "buffers": found.buffers,
            }
            for kind, found in host.items()
        },
        "captures": stats.captures,
        "graphs_compiled": stats.graphs_compiled,
        "compile_seconds": stats.compile_seconds,
        "device_reads_per_generation": stats.device_reads,
        "planned_bytes": stats.planned_bytes,
        "peak_buffer_bytes": stats.peak_buffer_bytes,
        "weights_shared": overhead.weights_shared(compiled, work.transformer),
    }


def _ratio(median: float, base: Samples | None) -> float | None:
    return None if base is None else median / base.median
