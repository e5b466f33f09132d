"""The figures of the demo: clips side by side, and the schedule as a heat map.

matplotlib is imported where it is used, so that the module can be imported without it.
Figures are made without pyplot: no window, no global state.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from graphcache.report import Run, Schedule, require_extra

_COMPUTED, _REUSED = "#0072b2", "#f5d9a8"
_DPI = 150
_GAP = 1
_SMALLEST_SCALE = 1e-6


def save_schedule(schedule: Schedule, path: Path) -> None:
    """Draw the schedule as a heat map.

    Args:
        schedule: What was computed.
        path: A ``.png`` file, replaced if it exists.

    Raises:
        GraphCacheError: If matplotlib is not installed.
    """
    rows = len(schedule.rows)
    figure = _figure((9, 1.7 + 0.24 * rows))
    axes = figure.subplots()
    from matplotlib.colors import ListedColormap

    axes.pcolormesh(
        [
            [math.nan if cell is None else float(cell) for cell in line]
            for line in schedule.computed
        ],
        cmap=ListedColormap([_REUSED, _COMPUTED]),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.8,
    )
    axes.invert_yaxis()
    axes.set_yticks([row + 0.5 for row in range(rows)], schedule.rows, fontsize=9)
    axes.set_ylabel("gated region")
    _label_steps(axes, schedule.timesteps)
    _add_legend(figure, schedule)
    figure.savefig(path, dpi=_DPI)


def _label_steps(axes: Any, timesteps: Sequence[float | None]) -> None:
    """Steps below, timesteps above where they are known."""
    shown = range(0, len(timesteps), max(1, round(len(timesteps) / 10)))
    middles = [step + 0.5 for step in shown]
    axes.set_xticks(middles, [str(step) for step in shown])
    axes.set_xlabel("denoising step")
    top = axes.secondary_xaxis("top")
    known = [timesteps[step] for step in shown]
    top.set_xticks(middles, ["" if t is None else f"{t:.0f}" for t in known])
    top.set_xlabel("timestep")
    _bare(axes)
    _bare(top)


def _add_legend(figure: Any, schedule: Schedule) -> None:
    from matplotlib.patches import Patch

    computed, reused = schedule.counts
    handles = [
        Patch(color=_COMPUTED, label=f"computed ({computed})"),
        Patch(color=_REUSED, label=f"reused ({reused})"),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)


def save_clips(
    reference: Run, run: Run, titles: Sequence[str], path: Path, columns: int = 2
) -> None:
    """Draw both runs' clips, frame by frame, and their difference.

    Args:
        reference: Drawn in the first row of every clip.
        run: Drawn in the second; the third is the absolute difference.
        titles: One per clip.
        path: A ``.png`` file, replaced if it exists.
        columns: Clips side by side.

    Raises:
        GraphCacheError: If matplotlib is not installed.
    """
    before, after = (item.clips.detach().cpu().float() for item in (reference, run))
    clips, frames = before.shape[:2]
    columns = min(columns, clips)
    lines = math.ceil(clips / columns)
    figure = _figure((1.8 + 0.7 * frames * columns, 0.4 + 2.5 * lines), "compressed")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.04)
    gray, heat = _scales(before, after)
    grid = figure.subplots(lines, columns, squeeze=False)
    for clip, axes in enumerate(grid.flat):
        if clip >= clips:
            axes.set_axis_off()
            continue
        old, new = before[clip, :, 0], after[clip, :, 0]
        rows = (gray.to_rgba(old), gray.to_rgba(new), heat.to_rgba((old - new).abs()))
        axes.imshow(mosaic(rows), interpolation="nearest")
        axes.set_title(titles[clip])
        _label_frames(axes, old.shape)
    for axes in grid[:, 1:].flat:
        axes.set_yticks([])
    bar = figure.colorbar(heat, ax=grid, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("|difference| (pixel range is 2)")
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=_DPI)


def _scales(before: Tensor, after: Tensor) -> tuple[Any, Any]:
    """Colour scales of pixels and of differences."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    largest = max(float((before - after).abs().max()), _SMALLEST_SCALE)
    gray = ScalarMappable(Normalize(-1, 1), "gray")
    return gray, ScalarMappable(Normalize(0, largest), "inferno")


def mosaic(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Frames side by side, rows below each other, with transparent gaps.

    Args:
        rows: f64[frames, height, width, 4] each, RGBA in [0, 1], of one shape.

    Returns:
        f64[height of all, width of all, 4].
    """
    frames, height, width, _ = rows[0].shape
    tall, wide = height + _GAP, width + _GAP
    canvas = np.zeros((len(rows) * tall - _GAP, frames * wide - _GAP, 4))
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            canvas[y * tall : y * tall + height, x * wide : x * wide + width] = frame
    return canvas


def _label_frames(axes: Any, shape: Sequence[int]) -> None:
    frames, height, width = shape
    names = ("uncached", "PAB", "|difference|")
    across = [x * (width + _GAP) + (width - 1) / 2 for x in range(frames)]
    down = [y * (height + _GAP) + (height - 1) / 2 for y in range(len(names))]
    axes.set_xticks(across, [str(x) for x in range(frames)])
    axes.set_yticks(down, names)
    axes.set_xlabel("frame")
    _bare(axes)


def _bare(axes: Any) -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _figure(size: tuple[float, float], layout: str = "constrained") -> Any:
    """A figure of `size` inches that draws to files."""
    require_extra(("matplotlib",))
    kind: Any = importlib.import_module("matplotlib.figure").Figure
    return kind(figsize=size, layout=layout)
