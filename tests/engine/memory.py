"""A format that keeps programs in this process: engines in milliseconds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphcache.backends.eager import EagerBackend
from graphcache.backends.registry import Executable
from graphcache.engine.formats import Entry, Job
from graphcache.errors import EngineError
from graphcache.program import InputKind, Program

NAME = "memory"
LOCATION = f"{__name__}:MemoryFormat"
FILE = "programs.txt"


class MemoryFormat:
    """Writes a token, and runs what was written under it with the eager backend."""

    name = NAME
    conditions = True
    portable = False
    written: ClassVar[dict[str, Mapping[str, Program]]] = {}
    opened: ClassVar[list[Path]] = []

    def write(self, job: Job) -> Mapping[str, Any]:
        """Keep the programs."""
        if job.options:
            raise EngineError(f"{NAME} takes no options")
        token = secrets.token_hex(8)
        self.written[token] = dict(job.programs)
        (job.folder / FILE).write_text(token)
        for _ in job.programs:
            job.advance()
        return {"token": token}

    def open(
        self,
        folder: Path,
        entries: Sequence[Entry],
        details: Mapping[str, Any],
        device: torch.device,
        tensors: Mapping[tuple[InputKind, str], Tensor],
    ) -> Mapping[str, Executable]:
        """The programs that the file names."""
        self.opened.append(folder)
        token = (folder / FILE).read_text()
        assert details == {"token": token}
        programs = self.written[token]
        return {
            entry.name: EagerBackend().compile(programs[entry.name], {})
            for entry in entries
        }
