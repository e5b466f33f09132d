"""Every example runs as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
EXPECTED = {
    "01_pab_in_a_pipeline": "102 of 300 regions reused",
    "02_your_own_policy": "early  #.#.#.#.#.#.#.#.#.#.",
    "03_read_the_graph": "gate ?spatial",
    "04_write_a_pass": "edits the second time: 0",
    "05_calibrate": "######.#.#..#..#",
    "06_your_own_decision": "0.05 #..#..#",
    "07_torch_compile_backend": "graph breaks      0",
    "08_engine": "weights.safetensors",
    "09_requests_in_threads": "two requests in turn: each as alone",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED[path.stem] in done.stdout
