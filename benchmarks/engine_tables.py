"""The tables of `benchmarks.engines`, in Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import summary

_COLUMNS = (
    "method, lowering",
    "runs",
    "ms per generation",
    "/ in process",
    "computed call",
    "reused call",
    "difference",
    "export, s",
    "load, ms",
    "first call / steady",
    "weights, MB",
    "code, MB",
)
_LEFT = 2


def paragraphs(result: dict[str, Any]) -> list[str]:
    """The table, the notes on it, and where it was measured."""
    settings = result["settings"]
    same = all(row["same_decisions"] for row in result["rows"])
    notes = (
        f"{settings['clips']} clips in one batch, {settings['steps']} steps; medians "
        f"of {settings['rounds']} generations, rows in turn. Calls: over those of the "
        "same kind in process. Difference: the largest, relative to the largest value "
        "of the clips. "
        f"Same decisions as in process: {'all' if same else 'NOT all'}."
    )
    return [_table(result), notes, f"{summary(result['machine'])}; float32."]


def _table(result: dict[str, Any]) -> str:
    lines = [
        _line(_COLUMNS),
        "|" + "---|" * _LEFT + "---:|" * (len(_COLUMNS) - _LEFT),
        *(_line(_cells(row)) for row in result["rows"]),
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    files, ratio = row["files"] or {}, row["call_ratio"]
    weights = files.get("weights.safetensors")
    code = sum(files.values()) - (weights or 0) if files else None
    return [
        f"{row['method']}, {row['lowering']}",
        row["runs"],
        f"{row['generation']['median_ms']:,.0f}",
        f"{row['generation_ratio']:.2f}",
        *(f"{ratio[kind]:.2f}" if kind in ratio else "" for kind in _KINDS),
        f"{row['relative_difference']:.1e}",
        _number(row["export_seconds"], 0),
        _number(row["load_ms"], 0),
        _number(_first_ratio(row), 2),
        _megabytes(weights),
        _megabytes(code),
    ]


def _first_ratio(row: dict[str, Any]) -> float | None:
    """The first call, which computes, over a later one that does."""
    first, steady = row["first_call_ms"], row["call_ms"].get("compute")
    return first / steady if first and steady else None


_KINDS = ("compute", "reuse")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.2f}"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
