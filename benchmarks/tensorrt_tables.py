"""The table of `benchmarks.tensorrt_sizes`, in Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import summary


def paragraphs(result: dict[str, Any]) -> list[str]:
    """The table and what it is of, in Markdown."""
    lines = [
        "| method | weights | engines, MB | weights file, MB | export, s |",
        "|---|---|---|---:|---:|",
    ]
    for row in result["rows"]:
        engines = ", ".join(
            f"{name} {size / 1e6:.1f}" for name, size in row["engines"].items()
        )
        lines.append(
            f"| {row['method']} | {row['weights']} | {engines} | "
            f"{row['weights_bytes'] / 1e6:.1f} | {row['seconds']:.0f} |"
        )
    notes = (
        f"{result['model']}, for compute capability {result['capability']}; built "
        "without a GPU, and not run."
    )
    return ["\n".join(lines), notes, f"{summary(result['machine'])}."]
