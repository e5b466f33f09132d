"""The metrics, the table, the schedule and the figures of the demo."""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from graphcache import GraphCacheError, figures, report
from graphcache.report import Quality, Run, Schedule
from graphcache.runtime.stats import Statistics, StepRecord

PNG = b"\x89PNG\r\n\x1a\n"


def clips(value: float = 0.0, count: int = 1, frames: int = 2) -> Tensor:
    """f32[count, frames, 1, 8, 8], constant."""
    return torch.full((count, frames, 1, 8, 8), value)


def statistics(steps: int = 4) -> Statistics:
    """Two policies over three regions; spatial is reused at odd steps."""
    stats = Statistics(
        regions={"spatial": ("blocks.0.attn", "blocks.1.attn"), "cross": ("c.attn",)},
        graphs_compiled=3,
        planned_bytes=2048,
        peak_buffer_bytes=3 * 1024**2,
    )
    for index in range(steps):
        computed = {"spatial": index % 2 == 0, "cross": index == 0}
        record = StepRecord("cond", index, 900.0 - 100 * index, computed)
        stats.record(record, stats.regions)
    return stats


def run(name: str = "plain", seconds: float = 2.0, **kwargs: Any) -> Run:
    """A run whose timed generations took `seconds`, about."""
    timed = (seconds, seconds / 2, seconds * 3)
    values: dict[str, Any] = {
        "clips": clips(),
        "graphs_compiled": 0,
        "graph_breaks": 0,
        "recompiles": 0,
    }
    return Run(name, warmup=10.0, seconds=timed, **(values | kwargs))


def cached_run(**kwargs: Any) -> Run:
    """A run with every row."""
    values: dict[str, Any] = {
        "seconds": 0.5,
        "quality": Quality(31.25, 0.9876),
        "cache": statistics(),
        "graphs_compiled": 3,
        "graph_breaks": 1,
        "recompiles": 2,
    }
    return run("graphcache PAB", **(values | kwargs))


def test_psnr_is_that_of_the_formula() -> None:
    # Mean squared error 0.01 in a range of 2: 10 log10(4 / 0.01).
    quality = report.compare(clips(0.5), clips(0.4))
    assert quality.psnr == pytest.approx(10 * math.log10(400), abs=1e-4)


def test_psnr_is_averaged_over_frames_and_not_over_errors() -> None:
    other = clips(0.0)
    other[:, 0], other[:, 1] = 0.1, 0.2
    expected = (10 * math.log10(4 / 0.01) + 10 * math.log10(4 / 0.04)) / 2
    assert report.compare(clips(0.0), other).psnr == pytest.approx(expected, abs=1e-4)


def test_ssim_of_constant_frames_is_the_luminance_term() -> None:
    # No variance on either side: (2ab + c1) / (a^2 + b^2 + c1), c1 = (0.01 * 2)^2.
    a, b, c1 = 0.5, 0.25, 0.0004
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    quality = report.compare(clips(a), clips(b))
    assert quality.ssim == pytest.approx(expected, abs=1e-4)


def test_identical_clips_have_no_finite_psnr() -> None:
    quality = report.compare(clips(0.3), clips(0.3))
    assert quality == Quality(math.inf, 1.0)


def test_clips_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        report.compare(clips(), clips(frames=3))


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(GraphCacheError, match=r"no_such_package .*graphcache\[bench\]"):
        report.require_extra(("math", "no_such_package"))
    report.require_extra(("math",))


def test_schedule_has_a_row_per_region_and_a_column_per_step() -> None:
    stats = statistics()
    schedule = report.schedule_matrix(stats.steps, stats.regions)
    assert schedule == Schedule(
        rows=("blocks.0.attn", "blocks.1.attn", "c.attn"),
        timesteps=(900.0, 800.0, 700.0, 600.0),
        computed=(
            (True, False, True, False),
            (True, False, True, False),
            (True, False, False, False),
        ),
    )
    assert schedule.counts == (5, 7)
    counted = sum(stats.computed.values()), sum(stats.reused.values())
    assert schedule.counts == counted


def test_schedule_is_that_of_the_last_generation() -> None:
    steps = [*statistics(4).steps, *statistics(2).steps]
    schedule = report.schedule_matrix(steps, {"cross": ("c.attn",)})
    assert schedule.computed == ((True, False),)


def test_schedule_tells_streams_apart() -> None:
    steps = [
        StepRecord("cond", 0, 500.0, {"spatial": True}),
        StepRecord("uncond", 0, 500.0, {"spatial": True}),
        StepRecord("cond", 1, 400.0, {"spatial": False}),
    ]
    schedule = report.schedule_matrix(steps, {"spatial": ("a",)})
    assert schedule.rows == ("cond: a", "uncond: a")
    assert schedule.computed == ((True, False), (True, None))


def test_schedule_needs_steps() -> None:
    with pytest.raises(ValueError, match="no steps"):
        report.schedule_matrix(deque(), {})


def test_table_rows() -> None:
    rows = report.table_rows([run(), cached_run()])
    assert rows == [
        ("wall time", "2.000 s", "0.500 s"),
        ("speed-up over plain", "1.00x", "4.00x"),
        ("PSNR", "", "31.2 dB"),
        ("SSIM", "", "0.988"),
        ("spatial regions computed / reused", "", "4 / 4"),
        ("cross regions computed / reused", "", "1 / 3"),
        ("buffers planned", "", "2.00 KiB"),
        ("buffers measured", "", "3.00 MiB"),
        ("first generation", "10.0 s", "10.0 s"),
        ("graphs compiled", "0", "3"),
        ("graph breaks", "0", "1"),
        ("recompiles after warm-up", "0", "2"),
    ]


def test_speedups_are_over_every_uncached_run() -> None:
    runs = [run("eager", 4.0), run("compiled", 2.0), cached_run(seconds=1.0)]
    assert report.speedups(runs[2], runs) == {"eager": 4.0, "compiled": 2.0}


def test_table_says_identical_instead_of_infinite() -> None:
    rows = report.table_rows([run(), cached_run(quality=Quality(math.inf, 1.0))])
    assert ("PSNR", "", "identical") in rows


def test_summary_is_strict_json() -> None:
    same = cached_run(quality=Quality(math.inf, 1.0))
    summary = report.summarize(same, [run(), same])
    read = json.loads(json.dumps(summary, allow_nan=False))
    assert read["psnr_db"] is None
    assert read["seconds"] == [0.5, 0.25, 1.5]
    assert read["median_seconds"] == 0.5
    assert read["speedup_over"] == {"plain": 4.0}
    assert read["regions"]["cross"] == {"computed": 1, "reused": 3}
    assert read["buffer_bytes_measured"] == 3 * 1024**2


def printed(runs: list[Run], width: int | None) -> list[str]:
    """The lines of the table in a terminal, or in a file."""
    file = io.StringIO()
    report.print_table(Console(width=width, file=file), runs, "title", "caption")
    return file.getvalue().splitlines()


def three_runs() -> list[Run]:
    """As the demo makes them with --with-compile."""
    names = ("uncached (eager)", "uncached torch.compile")
    stats = Statistics(
        regions={"spatial": ("a",), "a_policy_with_a_rather_long_name": ("b",)},
        computed=Counter(spatial=12198, a_policy_with_a_rather_long_name=3),
        planned_bytes=1_234_567_890,
        peak_buffer_bytes=1_234_567_890,
    )
    return [*map(run, names), cached_run(cache=stats)]


def test_three_columns_fit_a_terminal_of_80_characters() -> None:
    runs = [*three_runs()[:2], cached_run(cache=statistics())]
    lines = printed(runs, 80)
    # No cell wraps: two lines of heading, three of frame, the title and the caption.
    assert len(lines) == len(report.table_rows(runs)) + 2 + 3 + 2


@pytest.mark.parametrize("width", [200, 80, 79, 60, 40, 30, 20, 10, None])
def test_no_figure_is_cut(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    runs = three_runs()
    lines = printed(runs, width)
    text = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for _, *cells in report.table_rows(runs):
        assert all(any(cell in line for line in lines) for cell in cells)
    # Labels are folded and not cut: their letters are all there, in order.
    labels = "".join(re.split(r"[^a-z_]", text))
    assert re.search(".*".join("a_policy_with_a_rather_long_name"), labels)
    if width is not None and width >= 40:
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (2_457_600, "2.34 MiB"),
        (5 * 1024**4, "5120.00 GiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert report.format_bytes(count) == text


def test_mosaic_places_frames_with_transparent_gaps() -> None:
    one, two = np.full((2, 3, 3, 4), 0.25), np.full((2, 3, 3, 4), 0.75)
    drawn = figures.mosaic([one, two])
    assert drawn.shape == (7, 7, 4)
    assert (drawn[:3, :3] == 0.25).all()
    assert (drawn[4:, 4:] == 0.75).all()
    assert (drawn[3] == 0).all()
    assert (drawn[:, 3] == 0).all()


@pytest.mark.parametrize("count", [1, 3])
def test_clips_are_drawn(tmp_path: Path, count: int) -> None:
    before, after = run(clips=clips(0.0, count)), run(clips=clips(0.5, count))
    file = tmp_path / "clips.png"
    figures.save_clips(before, after, [f"digit {i}" for i in range(count)], file)
    assert file.read_bytes().startswith(PNG)


def test_schedule_is_drawn_in_two_colours(tmp_path: Path) -> None:
    stats = statistics()
    file = tmp_path / "schedule.png"
    figures.save_schedule(report.schedule_matrix(stats.steps, stats.regions), file)
    from matplotlib.image import imread

    colours = {tuple(row) for row in imread(file)[..., :3].reshape(-1, 3).tolist()}
    for hexadecimal in ("0072b2", "f5d9a8"):
        wanted = torch.tensor(list(bytes.fromhex(hexadecimal))) / 255
        assert any(torch.allclose(torch.tensor(c), wanted) for c in colours)


def test_schedule_without_timesteps_is_drawn(tmp_path: Path) -> None:
    schedule = Schedule(("a",), (None, None), ((True, None),))
    figures.save_schedule(schedule, tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes().startswith(PNG)
