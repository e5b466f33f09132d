"""find-regions: tag the program with what could be cached.

Regions come from the graph alone: the module calls that enclose each node, and the
dataflow between them (`graphcache.analysis`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphcache.analysis.view import Analysis
from graphcache.passes.manager import PassResult
from graphcache.program import Program, Stage


@dataclass(frozen=True)
class FindRegions:
    """Tag the program with its attention, feed-forward and block regions."""

    name: ClassVar[str] = "find-regions"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per region found."""
        regions = Analysis(program).regions
        if regions == program.regions:
            return PassResult(program, 0)
        return PassResult(program.evolve(regions=regions), len(regions))
