"""Every method's PSNR over the FLOPs that it keeps: python -m benchmarks.method_figure.

Run alone it draws the committed results anew.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.method_tables import is_uncached

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "images" / "methods.png"
RESULTS = ROOT / "benchmarks" / "results" / "methods_moving_digits_cpu.json"
_MARKERS = "osD^vPX*<>hdp8"
_DPI = 150


def save_figure(result: dict[str, Any], path: Path) -> None:
    """Draw the methods as points and fewer steps as a line.

    Args:
        result: Of `benchmarks.methods`.
        path: A ``.png`` file, replaced if it exists.
    """
    kind: Any = importlib.import_module("matplotlib.figure").Figure
    figure = kind(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    _draw_control(axes, result["fewer_steps"])
    for index, (name, rows) in enumerate(_by_method(result).items()):
        _draw_method(axes, index, name, rows)
    settings = result["settings"]
    axes.set_xlabel(f"FLOPs, % of {settings['steps']} uncached steps")
    axes.set_ylabel("PSNR against the uncached clips, dB")
    axes.set_title(
        f"moving-digits, {settings['clips']} clips: what computing less costs"
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=_DPI)


def _by_method(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"].values():
        if not is_uncached(row) and row["psnr_db"] is not None:
            found.setdefault(row["name"], []).append(row)
    return found


def _draw_control(axes: Any, control: Sequence[dict[str, Any]]) -> None:
    """Every shorter loop as a dot, and the best so far as a line."""
    points = [point for point in control if point["psnr_db"] is not None]
    places = [100 * point["flops_kept"] for point in points]
    values = [point["psnr_db"] for point in points]
    axes.plot(
        places,
        list(itertools.accumulate(values, max)),
        color="0.35",
        linewidth=2,
        drawstyle="steps-post",
        label="no cache, at most so many steps",
        zorder=1,
    )
    axes.plot(
        places,
        values,
        ".",
        color="0.7",
        markersize=5,
        label="no cache, each number of steps",
        zorder=0,
    )


def _draw_method(
    axes: Any, index: int, name: str, rows: Sequence[dict[str, Any]]
) -> None:
    axes.plot(
        [100 * row["flops_kept"] for row in rows],
        [row["psnr_db"] for row in rows],
        marker=_MARKERS[index % len(_MARKERS)],
        color=_color(index),
        markersize=7,
        linewidth=0.8,
        linestyle=":",
        label=name,
        zorder=2,
    )


def _color(index: int) -> Any:
    maps: Any = importlib.import_module("matplotlib").colormaps
    return maps["tab10"](index) if index < 10 else maps["tab20b"](4 * (index - 10) % 20)


if __name__ == "__main__":
    save_figure(json.loads(RESULTS.read_text()), FIGURE)
