"""The pass manager verifies after every pass and dumps on request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from graphcache import VerifyError, never_reuse
from graphcache.passes.manager import PassResult, run_passes
from graphcache.passes.pipeline import rewrite_pipeline, specialize_pipeline
from graphcache.program import Program, Stage, output_node
from tests.models import tiny
from tests.programs import source


@dataclass(frozen=True)
class Break:
    """A pass that leaves a write behind."""

    name: ClassVar[str] = "break"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE,)

    def run(self, program: Program) -> PassResult:
        """Insert an in-place op."""
        edited = program.copy()
        output = output_node(edited.graph)
        with edited.graph.inserting_before(output):
            edited.graph.call_function(torch.ops.aten.relu_.default, (output.prev,))
        return PassResult(edited, 1)


def test_a_broken_pass_is_named() -> None:
    with pytest.raises(VerifyError, match="after break: state is data flow"):
        run_passes(source(tiny(depth=1)), [Break()])


def test_an_invalid_input_is_refused_before_any_pass() -> None:
    broken = Break().run(source(tiny(depth=1))).program
    with pytest.raises(VerifyError, match=r"^state is data flow"):
        run_passes(broken, [])


def test_a_stage_that_a_pass_does_not_take_is_refused() -> None:
    program = run_passes(source(tiny(depth=1)), rewrite_pipeline((never_reuse(),)))
    with pytest.raises(VerifyError, match="drop-noops cannot run on a cached"):
        run_passes(program, rewrite_pipeline((never_reuse(),)))


def test_every_pass_is_idempotent_where_it_stands() -> None:
    program = source(tiny(cross=True))
    for step in (*rewrite_pipeline((never_reuse(),)), *specialize_pipeline((True,))):
        program = step.run(program).program
        assert step.run(program).edits == 0, step.name


def test_passes_do_not_change_the_program_they_are_given() -> None:
    program = source(tiny(cross=True))
    for step in (*rewrite_pipeline((never_reuse(),)), *specialize_pipeline((True,))):
        before = str(program)
        result = step.run(program).program
        assert str(program) == before, step.name
        program = result


def test_dump_writes_one_numbered_file_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHCACHE_DUMP", str(tmp_path))
    run_passes(source(tiny(depth=1)), rewrite_pipeline((never_reuse(),)), label="a/b c")
    files = sorted(path.name for path in (tmp_path / "a_b_c").iterdir())
    assert files == [
        "00-input.txt",
        "01-drop-noops.txt",
        "02-dead-code.txt",
        "03-find-regions.txt",
        "04-plan-gates.txt",
        "05-insert-gates.txt",
        "06-sink-operands.txt",
        "07-dead-code.txt",
    ]
    first = (tmp_path / "a_b_c" / "05-insert-gates.txt").read_text().splitlines()[0]
    assert first.startswith("# insert-gates: 1 edits; nodes ")
    assert "graphcache_gate +1" in first
