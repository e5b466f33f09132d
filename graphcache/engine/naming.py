"""Names of an engine's programs, which are names of files as well."""

from __future__ import annotations

import re
from collections.abc import Iterator

from graphcache.lowering import Lowering
from graphcache.program import Fork, Lowered, Program

_LONGEST = 80


def program_names(lowering: Lowering, prefix: str) -> dict[str, Program]:
    """Every program of what was lowered, by a name that says when it runs.

    ``spatial_reuse`` is what runs when that policy reuses, ``first_block_head`` works
    out that policy's score, ``hoisted_teacache_head`` does so ahead of the step.

    Args:
        lowering: What is to be compiled.
        prefix: Goes before every name.
    """
    found: dict[int, tuple[str, Program]] = {}
    taken: set[str] = set()
    for wanted, program in _named(lowering):
        if id(program) not in found:
            name = _unique(prefix + re.sub(r"\W", "_", wanted)[:_LONGEST], taken)
            found[id(program)] = name, program
    return dict(found.values())


def _named(lowering: Lowering) -> Iterator[tuple[str, Program]]:
    for signature, tree in lowering.routes.items():
        said = zip(lowering.host, signature, strict=True)
        words = [f"{name}_{_outcome(computes)}" for name, computes in said]
        if lowering.choice.name == "conditional":
            words = ["conditional"]
        yield from _segments(tree, words)
    for name, tree in lowering.hoisted.items():
        yield from _segments(tree, ["hoisted", name])


def _segments(tree: Lowered, words: list[str]) -> Iterator[tuple[str, Program]]:
    if not isinstance(tree, Fork):
        yield "_".join(words) or "step", tree
        return
    yield "_".join([*words, tree.predicate, "head"]), tree.head
    for side, computes in ((tree.compute, True), (tree.reuse, False)):
        yield from _segments(side, [*words, tree.predicate, _outcome(computes)])


def _outcome(computes: bool) -> str:
    return "compute" if computes else "reuse"


def _unique(name: str, taken: set[str]) -> str:
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found
