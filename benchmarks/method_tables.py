"""The table of all methods, in Markdown, from the results of `benchmarks.methods`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_COLUMNS = (
    "method",
    "setting",
    "FLOPs",
    "steps in full / with reuse",
    "ms",
    "/ uncached",
    "graphs",
    "host reads",
    "buffers, MB (peak)",
    "PSNR, dB",
    "SSIM",
    "fewer steps, dB (steps)",
)
_LEFT = 2
"""Columns of text."""


def paragraphs(result: dict[str, Any]) -> list[str]:
    """The table, the notes on it, and where it was measured."""
    return [methods_table(result), *notes(result), machine_line(result)]


def methods_table(result: dict[str, Any]) -> str:
    """One line per row, in Markdown."""
    lines = [
        _line(_COLUMNS),
        "|" + "---|" * _LEFT + "---:|" * (len(_COLUMNS) - _LEFT),
        *(_line(_cells(key, row, result)) for key, row in result["rows"].items()),
    ]
    return "\n".join(lines)


def notes(result: dict[str, Any]) -> list[str]:
    """What the table does not show, and how it was made, in Markdown paragraphs."""
    settings, model = result["settings"], result["model"]
    rows = result["rows"].values()
    breaks = sum(row["graph_breaks"] for row in rows)
    breaks += result["graph_breaks_while_timed"]
    late = sum(row["recompiles_while_timed"] for row in rows)
    baseline = next(iter(rows))
    return [
        f"{settings['clips']} clips in one batch, {settings['steps']} steps, guidance "
        f"{settings['guidance']:g}; {model['tokens']} tokens of width "
        f"{model['width']}, {model['layers']} layers. FLOPs: part of the uncached "
        f"{model['flops_per_step'] * settings['steps'] / 1e9:.1f} GFLOP of "
        f"{settings['steps']} steps. ms: median of {settings['rounds']} "
        "generations, rows in turn; / uncached: over that of the first row "
        f"({_samples(baseline)} ms). PSNR and SSIM: against the uncached, eager clips, "
        "mean over frames. Last column: the best PSNR of all loops of fewer "
        "steps without a cache that take at most as many FLOPs, a part of a step "
        "counted as one, and its steps.",
        f"Graph breaks: {breaks}; graphs compiled while timed: {late}.",
        "Left out: "
        + "; ".join(f"{name}: {why}" for name, why in result["left_out"].items())
        + ".",
    ]


def machine_line(result: dict[str, Any]) -> str:
    """Where and with what it was measured."""
    machine, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["packages"].items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads; Python {machine['python']}, "
        f"{versions}; {settings['dtype']}, backend {settings['backend']}."
    )


def fewer_steps(row: dict[str, Any], result: dict[str, Any]) -> dict[str, Any] | None:
    """The best loop of fewer steps without a cache for no more FLOPs than the row's.

    Part of a step counts as one. Shorter can be better: the scheduler steps by
    1000 // n, and drifts from its own timesteps where n does not divide 1000.

    Returns:
        None if none was run that is so short.
    """
    control: Sequence[dict[str, Any]] = result["fewer_steps"]
    most = math.ceil(row["flops_kept"] * result["settings"]["steps"] - 1e-9)
    within = [point for point in control if point["steps"] <= most]
    return max(within, key=decibels, default=None)


def decibels(row: dict[str, Any]) -> float:
    """The PSNR; infinite for identical clips, of which JSON has none."""
    return math.inf if row["psnr_db"] is None else float(row["psnr_db"])


def is_uncached(row: dict[str, Any]) -> bool:
    """Whether a row of the results caches nothing."""
    return not row["outcomes"]


def _cells(key: str, row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    plain = is_uncached(row)
    control = None if plain else fewer_steps(row, result)
    buffers = f"{_megabytes(row['planned_bytes'])} ({_megabytes(row['peak_bytes'])})"
    return [
        row["name"],
        row["setting"],
        f"{row['flops_kept']:.1%}".replace("%", " %"),
        f"{row['steps_computed']} / {row['steps_reused']}",
        f"{row['median_ms']:,.0f}",
        f"{row['over_uncached']:.2f}",
        str(row["graphs"]) if row["graphs"] else "",
        str(row["host_reads"]),
        "" if plain else buffers,
        _shown(row),
        f"{row['ssim']:.3f}",
        "" if control is None else f"{_shown(control)} ({control['steps']})",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(row: dict[str, Any]) -> str:
    return "identical" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _samples(row: dict[str, Any]) -> str:
    return ", ".join(f"{value:,.0f}" for value in row["samples_ms"])
