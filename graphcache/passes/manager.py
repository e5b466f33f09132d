"""Runs passes in order and verifies the program after every one of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from graphcache.errors import VerifyError
from graphcache.printer import format_diff, format_program
from graphcache.program import Program, Stage
from graphcache.spec import verify

DUMP_VARIABLE = "GRAPHCACHE_DUMP"


@dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    Attributes:
        program: The new program; the same object if nothing changed.
        edits: How many edits were made, counted one by one.
    """

    program: Program
    edits: int


class Pass(Protocol):
    """A rewrite of a program: frozen options and one method.

    The pass leaves the program valid for `after`, makes no edit the second time it
    runs, and never changes the program it was given.
    """

    name: ClassVar[str]
    before: ClassVar[tuple[Stage, ...]]

    def run(self, program: Program) -> PassResult:
        """Apply the pass."""
        ...


def run_passes(
    program: Program, passes: Sequence[Pass], *, label: str = "program"
) -> Program:
    """Run the passes in order; verify the input and every result.

    With ``GRAPHCACHE_DUMP=dir`` set, writes the program after each pass to
    ``dir/label/NN-pass-name.txt``, with a line that says what the pass changed.

    Args:
        program: The program to start from.
        passes: What to run, in order.
        label: Names the folder of the dump.

    Raises:
        VerifyError: If a pass is given a stage it does not take, or leaves an
            invalid program; the message names the pass.
    """
    verify(program)
    _dump(label, 0, "input", program, "")
    for number, step in enumerate(passes, start=1):
        if program.stage not in step.before:
            raise VerifyError(f"{step.name} cannot run on a {program.stage.value}")
        result = step.run(program)
        try:
            verify(result.program)
        except VerifyError as error:
            raise VerifyError(f"after {step.name}: {error}") from error
        diff = format_diff(program, result.program, result.edits)
        program = result.program
        _dump(label, number, step.name, program, diff)
    return program


def _dump(label: str, number: int, name: str, program: Program, diff: str) -> None:
    directory = os.environ.get(DUMP_VARIABLE)
    if not directory:
        return
    folder = Path(directory) / re.sub(r"[^\w.=-]", "_", label)
    folder.mkdir(parents=True, exist_ok=True)
    header = f"# {name}: {diff}\n" if diff else ""
    path = folder / f"{number:02d}-{name}.txt"
    path.write_text(header + format_program(program) + "\n")
