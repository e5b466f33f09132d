"""What was measured, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import summary


def show(console: Console, measured: dict[str, Any], machine: dict[str, Any]) -> None:
    """Print the tables of one size."""
    rows = list(measured["rows"].values())
    console.print(f"\n[bold]{_headline(measured)}[/bold]")
    console.print(generations_table(rows))
    console.print(_loop_line(measured))
    console.print(compilation_table(rows))
    if measured["steps"] is not None:
        console.print(steps_table(measured["steps"]))
    if measured["graphcache"] is not None:
        for line in inside_lines(measured["graphcache"], measured["weight_bytes"]):
            console.print(line)
    console.print(summary(machine), highlight=False)


def generations_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Time of a generation, for each way to run the loop."""
    table = _table("generations", "ms", "quartiles", "/ uncached", "/ ideal", "error")
    for row in rows:
        low, high = row["quartiles_ms"]
        table.add_row(
            row["label"],
            f"{row['median_ms']:.1f}",
            f"{low:.1f} to {high:.1f}",
            _optional(row["over_eager"], ".3f"),
            _optional(row["over_ideal"], ".3f"),
            _optional(row["error"], ".0e"),
        )
    return table


def compilation_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What each way compiles, and what it keeps in memory."""
    table = _table(
        "compilation",
        "graphs",
        "breaks",
        "recompiles",
        "graph calls",
        "seconds",
        "cache MB",
    )
    for row in rows:
        table.add_row(
            row["label"],
            str(row["graphs"]),
            str(row["graph_breaks"]),
            str(row["recompiles_while_timed"]),
            _optional(row["graph_calls"], "d"),
            f"{row['compile_seconds']:.1f}",
            _megabytes(row["held_bytes"]),
        )
    return table


def steps_table(steps: dict[str, Any]) -> Table:
    """Single steps beside what they should cost."""
    table = _table("single steps", "graphcache ms", "ideal ms", "ratio")
    for label, ours, ideal, ratio in (
        ("computed", "graphcache_compute", "plain_compiled", "compute_over_plain"),
        ("reused", "graphcache_reuse", "handwritten_reuse", "reuse_over_handwritten"),
    ):
        table.add_row(
            label,
            f"{steps[ours]['median_ms']:.3f}",
            f"{steps[ideal]['median_ms']:.3f}",
            f"{steps[ratio]:.3f}",
        )
    return table


def inside_lines(inside: dict[str, Any], weight_bytes: int) -> list[str]:
    """graphcache's host time and memory."""
    host = [
        f"host time of a {kind} call besides compiled code: "
        f"{found['microseconds']:.0f} us over {found['buffers']} buffers "
        f"(target {found['target_microseconds']:.0f} us)"
        for kind, found in inside["host_time"].items()
    ]
    shared = "shared" if inside["weights_shared"] else "COPIED"
    return [
        *host,
        f"buffers: {_megabytes(inside['planned_bytes'])} MB planned, "
        f"{_megabytes(inside['peak_buffer_bytes'])} MB held at most; "
        f"weights: {_megabytes(weight_bytes)} MB, {shared}; "
        f"device reads per generation: {inside['device_reads_per_generation']}",
    ]


def _headline(measured: dict[str, Any]) -> str:
    return (
        f"{measured['size']}: {measured['layers']} layers, width {measured['width']}, "
        f"batch {measured['batch']}, {measured['tokens']} tokens; "
        f"{measured['steps_computed']} steps computed, "
        f"{measured['steps_reused']} reused"
    )


def _loop_line(measured: dict[str, Any]) -> str:
    alone = measured["loop"]["median_ms"]
    line = f"of each, the loop without a transformer: {alone:.1f} ms"
    if measured["steps"] is not None:
        total = measured["steps"]["ideal_sum_ms"]
        line += f"; the ideal's single steps add up to {total:.1f} ms"
    return line


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f}"
