"""What the demo reports: quality metrics, the table, and the schedule.

Nothing here runs a model, and nothing is drawn: `graphcache.figures` does. scikit-image
is imported where it is used, so that the module can be imported without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from torch import Tensor

from graphcache.errors import GraphCacheError
from graphcache.runtime.stats import Statistics, StepRecord

DATA_RANGE = 2.0
"""Pixels are in [-1, 1]."""
EXTRA = ("matplotlib", "skimage", "transformers")
"""What the demo needs besides the dependencies of the library."""


def require_extra(names: Sequence[str] = EXTRA) -> None:
    """Raise if a package of the ``bench`` extra is missing.

    Args:
        names: Top-level modules, as they are imported.

    Raises:
        GraphCacheError: If one cannot be found; the message names the extra.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise GraphCacheError(
            f"{' and '.join(missing)} cannot be imported: they come with the bench "
            'extra, pip install "graphcache[bench]"'
        )


@dataclass(frozen=True)
class Quality:
    """How close clips are to reference clips, averaged over frames and clips.

    Attributes:
        psnr: Peak signal-to-noise ratio, in dB; infinite where a frame is identical.
        ssim: Structural similarity, at most 1.
    """

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Run:
    """One way of generating the clips, as measured.

    Attributes:
        name: Heading of the column.
        clips: f32[clips, frames, 1, height, width], about [-1, 1].
        warmup: Wall time of the first generation, compiling included, in seconds.
        seconds: Wall times of the timed generations.
        graphs_compiled: Graphs given to a compiler, by all generations.
        graph_breaks: Graph breaks that Dynamo counted, by all generations.
        recompiles: Graphs compiled by the timed generations.
        quality: Against the reference; None for the reference itself.
        cache: Statistics of the last timed generation; None if nothing is cached.
    """

    name: str
    clips: Tensor
    warmup: float
    seconds: tuple[float, ...]
    graphs_compiled: int
    graph_breaks: int
    recompiles: int
    quality: Quality | None = None
    cache: Statistics | None = None

    @property
    def median(self) -> float:
        """Median wall time of a timed generation, in seconds."""
        return statistics.median(self.seconds)


def compare(reference: Tensor, clips: Tensor) -> Quality:
    """PSNR and SSIM of each frame, averaged.

    Args:
        reference: f32[clips, frames, 1, height, width] in [-1, 1].
        clips: The same shape.

    Raises:
        GraphCacheError: If scikit-image is not installed.
        ValueError: If the shapes differ.
    """
    require_extra(("skimage",))
    similarity = importlib.import_module("skimage.metrics").structural_similarity
    if reference.shape != clips.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {clips.shape}")
    frames = list(zip(_frames(reference), _frames(clips), strict=True))
    similarities = [
        float(similarity(a.numpy(), b.numpy(), data_range=DATA_RANGE))
        for a, b in frames
    ]
    return Quality(
        psnr=statistics.fmean(psnr(a, b) for a, b in frames),
        ssim=statistics.fmean(similarities),
    )


def psnr(reference: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; infinite if the two are equal."""
    # skimage's own warns and divides by zero on equal images.
    if reference.equal(image):
        return math.inf
    ratio: Any = importlib.import_module("skimage.metrics").peak_signal_noise_ratio
    return float(ratio(reference.numpy(), image.numpy(), data_range=DATA_RANGE))


def _frames(clips: Tensor) -> tuple[Tensor, ...]:
    """Frames of all clips, f32[height, width] each."""
    return clips.detach().cpu().float().flatten(0, 2).unbind(0)


def summarize(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    """What one column says, as plain data for ``results.json``.

    Args:
        run: The run.
        runs: All runs; speed-ups are over each that caches nothing.
    """
    data: dict[str, Any] = {
        "warmup_seconds": run.warmup,
        "seconds": list(run.seconds),
        "median_seconds": run.median,
        "speedup_over": speedups(run, runs),
        "graphs_compiled": run.graphs_compiled,
        "graph_breaks": run.graph_breaks,
        "recompiles": run.recompiles,
    }
    if run.quality is not None:
        # JSON has no infinity: identical frames have no PSNR.
        finite = math.isfinite(run.quality.psnr)
        data["psnr_db"] = run.quality.psnr if finite else None
        data["ssim"] = run.quality.ssim
    if run.cache is not None:
        data["regions"] = {
            name: {
                "computed": run.cache.computed[name],
                "reused": run.cache.reused[name],
            }
            for name in run.cache.regions
        }
        data["buffer_bytes_planned"] = run.cache.planned_bytes
        data["buffer_bytes_measured"] = run.cache.peak_buffer_bytes
    return data


def speedups(run: Run, runs: Sequence[Run]) -> dict[str, float]:
    """How many times faster a run is than each that caches nothing, by name."""
    return {
        other.name: other.median / run.median for other in runs if other.cache is None
    }


def table_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Rows of the table: a label, then one cell per run."""
    columns = [_column(run, runs) for run in runs]
    # A cached run has every row, and so the order of all.
    fullest = sorted(columns, key=len, reverse=True)
    labels = dict.fromkeys(itertools.chain.from_iterable(fullest))
    return [(label, *(column.get(label, "") for column in columns)) for label in labels]


def _column(run: Run, runs: Sequence[Run]) -> dict[str, str]:
    cells = {"wall time": f"{run.median:.3f} s"}
    for name, ratio in speedups(run, runs).items():
        cells[f"speed-up over {name}"] = f"{ratio:.2f}x"
    if run.quality is not None:
        identical = math.isinf(run.quality.psnr)
        cells["PSNR"] = "identical" if identical else f"{run.quality.psnr:.1f} dB"
        cells["SSIM"] = f"{run.quality.ssim:.3f}"
    if run.cache is not None:
        for name in run.cache.regions:
            counts = f"{run.cache.computed[name]} / {run.cache.reused[name]}"
            cells[f"{name} regions computed / reused"] = counts
        cells["buffers planned"] = format_bytes(run.cache.planned_bytes)
        cells["buffers measured"] = format_bytes(run.cache.peak_buffer_bytes)
    return cells | {
        "first generation": f"{run.warmup:.1f} s",
        "graphs compiled": str(run.graphs_compiled),
        "graph breaks": str(run.graph_breaks),
        "recompiles after warm-up": str(run.recompiles),
    }


def print_table(
    console: Console, runs: Sequence[Run], title: str, caption: str
) -> None:
    """Print the table of the demo, no figure cut whatever the width is.

    Where the columns do not fit beside each other, each run has a table of its own; in
    less than a few words of width, lines.

    Args:
        console: Where it is printed.
        runs: The reference first.
        title: Above the table.
        caption: Below it: how the figures were taken.
    """
    rows = table_rows(runs)
    every = list(range(len(runs)))
    for columns in [every], [[column] for column in every]:
        tables = [build_table(rows, runs, chosen, title, "") for chosen in columns]
        if all(_least_width(table) <= console.width for table in tables):
            for table in tables:
                console.print(table)
            break
    else:
        for label, *cells in rows:
            shown = ", ".join(
                f"{r.name}: {c}" for r, c in zip(runs, cells, strict=True) if c
            )
            console.print(f"{label}: {shown}", markup=False, soft_wrap=True)
    console.print(caption, markup=False, highlight=False, style="table.caption")


_LABEL = 12
"""Columns of text that a label needs; it is folded into them."""


def build_table(
    rows: Sequence[Sequence[str]],
    runs: Sequence[Run],
    chosen: Sequence[int],
    title: str,
    caption: str,
) -> Table:
    """A table of some of the runs; figures stay on one line, labels fold.

    Args:
        rows: What `table_rows` returned.
        runs: All runs.
        chosen: Which of them, by index.
        title: Above the table.
        caption: Below it.
    """
    table = Table(title=title, caption=caption or None, caption_justify="left")
    table.add_column("", overflow="fold", min_width=_LABEL)
    for index in chosen:
        # On two lines, so that three columns fit a terminal of 80 characters.
        name = runs[index].name.replace(" ", "\n", 1)
        table.add_column(name, justify="right", no_wrap=True)
    for label, *cells in rows:
        if any(cells[index] for index in chosen):
            table.add_row(label, *(cells[index] for index in chosen))
    return table


def _least_width(table: Table) -> int:
    """The width of a table in which labels are folded and figures are whole."""
    widths = [
        max(
            cell_len(line)
            for cell in (column.header, *column.cells)
            for line in str(cell).splitlines() or [""]
        )
        for column in table.columns[1:]
    ]
    # Each column has a space on either side, and a line after it.
    return 1 + sum(width + 3 for width in (_LABEL, *widths))


def format_bytes(count: int) -> str:
    """Bytes for people: ``2.34 MiB``."""
    if count < 1024:
        return f"{count} B"
    exponent = min(3, int(math.log2(count) // 10))
    return f"{count / 1024**exponent:.2f} {('KiB', 'MiB', 'GiB')[exponent - 1]}"


@dataclass(frozen=True)
class Schedule:
    """What one generation computed, step by step.

    Attributes:
        rows: One label per gated region.
        timesteps: One per step, in the scheduler's units; None if not known.
        computed: By row and step; None where the region was not called.
    """

    rows: tuple[str, ...]
    timesteps: tuple[float | None, ...]
    computed: tuple[tuple[bool | None, ...], ...]

    @property
    def counts(self) -> tuple[int, int]:
        """Cells computed and cells reused."""
        cells = list(itertools.chain.from_iterable(self.computed))
        return cells.count(True), cells.count(False)


def schedule_matrix(
    steps: Sequence[StepRecord], regions: Mapping[str, tuple[str, ...]]
) -> Schedule:
    """Step by layer, of the last generation of every stream.

    Args:
        steps: Calls, oldest first.
        regions: Module paths of the gated regions, by policy name.

    Raises:
        ValueError: If there are no steps.
    """
    streams: dict[str, list[StepRecord]] = {}
    for record in steps:
        if record.index == 0 or record.stream not in streams:
            streams[record.stream] = []
        streams[record.stream].append(record)
    if not streams:
        raise ValueError("no steps were recorded")
    longest = max(streams.values(), key=len)
    rows: list[str] = []
    cells: list[tuple[bool | None, ...]] = []
    for stream, records in streams.items():
        prefix = f"{stream}: " if len(streams) > 1 else ""
        missing = (None,) * (len(longest) - len(records))
        for policy, paths in regions.items():
            line = tuple(record.computed.get(policy) for record in records) + missing
            rows.extend(f"{prefix}{path}" for path in paths)
            cells.extend([line] * len(paths))
    timesteps = tuple(record.timestep for record in longest)
    return Schedule(tuple(rows), timesteps, tuple(cells))
