"""The benchmark of all methods: what it writes, and what is made of that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calibrations, methods
from benchmarks.method_settings import METHODS, sparse
from benchmarks.method_tables import fewer_steps, paragraphs

PNG = b"\x89PNG\r\n\x1a\n"
ROW: dict[str, Any] = {
    "name": str,
    "setting": str,
    "flops": int,
    "flops_kept": float,
    "steps": int,
    "steps_computed": int,
    "steps_reused": int,
    "outcomes": dict,
    "computed_by_policy": dict,
    "median_ms": float,
    "quartiles_ms": list,
    "samples_ms": list,
    "over_uncached": float,
    "graphs": int,
    "recompiles_while_timed": int,
    "graph_breaks": int,
    "host_reads": int,
    "device_reads": int,
    "planned_bytes": int,
    "peak_bytes": int,
    "psnr_db": (float, type(None)),
    "ssim": float,
}


@pytest.mark.slow
def test_a_rehearsal(tmp_path: Path) -> None:
    output, figure = tmp_path / "results.json", tmp_path / "figure.png"
    paths = ["--output", str(output), "--figure", str(figure)]
    methods.main(["--quick", "--threads", "1", "--clips", "1", *paths])
    result = json.loads(output.read_text())
    check_rows(result)
    check_flops(result)
    check_table(result)
    assert result["settings"]["backend"] == "eager"
    assert {"cpu", "threads", "packages"} <= set(result["machine"])
    assert set(result["left_out"]) == {"SeaCache", "T-GATE"}
    assert [p["steps"] for p in result["fewer_steps"]] == list(range(2, 10))
    assert figure.read_bytes().startswith(PNG)


def check_rows(result: dict[str, Any]) -> None:
    """Every row has every figure."""
    assert set(methods.QUICK) < set(result["rows"])
    for row in result["rows"].values():
        assert set(row) == set(ROW)
        for name, kind in ROW.items():
            assert isinstance(row[name], kind), name
        assert row["steps_computed"] + row["steps_reused"] == row["steps"]
        assert row["recompiles_while_timed"] == row["graph_breaks"] == 0
        assert 0 < row["flops_kept"] <= 1


def check_flops(result: dict[str, Any]) -> None:
    """FLOPs are those of the steps that were taken."""
    steps, per_step = result["settings"]["steps"], result["model"]["flops_per_step"]
    for row in result["rows"].values():
        outcomes = row["outcomes"].values()
        if not outcomes:
            assert row["flops"] == row["steps"] * per_step
            continue
        assert sum(outcome["steps"] for outcome in outcomes) == steps
        assert row["flops"] == sum(o["steps"] * o["flops"] for o in outcomes)
        computed = row["steps_computed"] * per_step
        assert computed < row["flops"] or not row["steps_reused"]


def check_table(result: dict[str, Any]) -> None:
    """The table has every row, and the notes what it does not show."""
    table, *notes = paragraphs(result)
    _, rule, *lines = table.splitlines()
    assert len(lines) == len(result["rows"])
    assert {line.count("|") for line in (rule, *lines)} == {13}
    assert "Graph breaks: 0; graphs compiled while timed: 0." in notes


def test_methods_have_two_settings_each() -> None:
    assert len({method.key for method in METHODS}) == len(METHODS)
    names = [method.name for method in METHODS]
    assert {names.count(name) for name in names} == {2}


def test_every_config_can_be_made_of_the_stored_calibrations() -> None:
    given = calibrations.load(50)
    assert given is not None
    assert calibrations.load(49) is None
    for method in METHODS:
        assert method.config(given), method.key


def test_calibrations_are_stored_as_they_are(tmp_path: Path) -> None:
    given = calibrations.load(50)
    assert given is not None
    calibrations.save(given, tmp_path / "calibrations.json")
    assert calibrations.load(50, tmp_path / "calibrations.json") == given
    assert calibrations.load(50, tmp_path / "none.json") is None


def test_a_sparse_mask_has_first_and_last_steps() -> None:
    assert sparse(8, 2, 3) == [1, 1, 0, 1, 0, 0, 1, 1]


def test_the_control_is_the_best_loop_that_is_short_enough() -> None:
    control = [
        {"steps": 2, "psnr_db": 30.0},
        {"steps": 3, "psnr_db": 29.0},
        {"steps": 4, "psnr_db": 35.0},
    ]
    result = {"settings": {"steps": 10}, "fewer_steps": control}
    assert fewer_steps({"flops_kept": 0.1}, result) is None
    assert fewer_steps({"flops_kept": 0.3}, result) == control[0]
    assert fewer_steps({"flops_kept": 0.31}, result) == control[2]
