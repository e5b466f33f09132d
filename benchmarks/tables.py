"""The tables of the documentation, from the committed results.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import engine_tables, method_tables, tensorrt_tables

RESULTS = Path(__file__).parent / "results"
FILES = ("pab_cogvideox_small_cpu.json", "pab_cogvideox_large_cpu.json")
METHODS_FILE = "methods_moving_digits_cpu.json"
ENGINES_FILE = "engines_moving_digits_cpu.json"
TENSORRT_FILE = "tensorrt_sizes_cpu.json"
_ROWS = {
    "eager": "uncached",
    "compile": "uncached, `torch.compile`",
    "hooks": "diffusers' PAB hooks",
    "hooks-compile": "the hooks, `torch.compile`",
    "hooks-compile-raised": "the hooks, `torch.compile`, recompile limit raised",
    "graphcache": "**graphcache**",
    "ideal": "ideal: hand-written reuse step",
}


def speed_table(results: list[dict[str, Any]]) -> str:
    """Medians and graph counts of every row, one column a result, in Markdown."""
    sizes = [result["sizes"][0] for result in results]
    lines = [
        "| ms per generation (graphs compiled) | "
        + " | ".join(map(_heading, sizes, results))
        + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    lines += [
        f"| {label} | " + " | ".join(_cell(size, key) for size in sizes) + " |"
        for key, label in _ROWS.items()
    ]
    return "\n".join(lines)


def machine_line(result: dict[str, Any]) -> str:
    """Where and with what the result was measured."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["packages"].items())
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    dtype = result["settings"]["dtype"]
    return f"{where}; Python {machine['python']}, {versions}; {dtype}"


def read(names: tuple[str, ...] = FILES) -> list[dict[str, Any]]:
    """The committed results."""
    return [json.loads((RESULTS / name).read_text()) for name in names]


def _heading(size: dict[str, Any], result: dict[str, Any]) -> str:
    return (
        f"{size['size']}: {size['layers']} layers of width {size['width']}, "
        f"{size['tokens']} tokens, {result['settings']['steps']} steps"
    )


def _cell(size: dict[str, Any], key: str) -> str:
    row = size["rows"].get(key)
    if row is None:
        return ""
    graphs = f" ({row['graphs']})" if row["graphs"] else ""
    return f"{row['median_ms']:,.0f}{graphs}"


if __name__ == "__main__":
    found = read()
    print(speed_table(found))
    print()
    print(machine_line(found[-1]))
    for file, tables in (
        (METHODS_FILE, method_tables),
        (ENGINES_FILE, engine_tables),
        (TENSORRT_FILE, tensorrt_tables),
    ):
        print()
        print("\n\n".join(tables.paragraphs(*read((file,)))))
