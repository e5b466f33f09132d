"""drop-stores: do not store what nobody will read.

A buffer that no reachable variant reads is no state at all. With a policy that never
reuses, nothing is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphcache.passes.manager import PassResult
from graphcache.program import Program, Stage, set_outputs


@dataclass(frozen=True)
class DropStores:
    """Stop returning the buffers outside `read`.

    Args:
        read: Names of the buffers that some reachable variant reads.
    """

    read: frozenset[str]
    name: ClassVar[str] = "drop-stores"
    before: ClassVar[tuple[Stage, ...]] = (Stage.LOWERED,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per store dropped."""
        keep = [store in self.read for store in program.stores]
        buffers = tuple(b for b in program.buffers if b.name in self.read)
        edits = keep.count(False)
        if not edits and buffers == program.buffers:
            return PassResult(program, 0)
        edited = program.copy()
        outputs = edited.outputs
        kept = tuple(v for v, kept in zip(outputs.stores, keep, strict=True) if kept)
        set_outputs(edited.graph, replace(outputs, stores=kept))
        edited.module.recompile()
        stores = tuple(s for s, kept in zip(program.stores, keep, strict=True) if kept)
        return PassResult(edited.evolve(stores=stores, buffers=buffers), edits)
