"""References: whatever a manifest names has to be there.

Hashes say that a file is what was written, and not that it was written by graphcache.
"""

from __future__ import annotations

from collections.abc import Iterable

from graphcache.engine.interfaces import programs_of
from graphcache.engine.manifest import (
    MANIFEST_FILE,
    CaptureRecord,
    Manifest,
    ProgramRecord,
    TensorLeaf,
    TensorRecord,
    TreeRecord,
)
from graphcache.errors import EngineError
from graphcache.program import InputKind

_OUTPUTS = {"tuple", "list", "dict", "output"}


def check_references(manifest: Manifest) -> None:
    """Refuse a manifest whose parts do not fit together.

    Raises:
        EngineError: Naming what is missing, or not what it has to be.
    """
    if not manifest.captures:
        raise _wrong("it holds no loop")
    _inside(
        "weights", (entry.kind for entry in manifest.stored), ("weight", "constant")
    )
    for entry in manifest.stored:
        if entry.type.shape is None:
            raise _wrong(f"{entry.key} has no shape")
        _check_type(entry.key, entry.type)
    stored = {(entry.kind, entry.target) for entry in manifest.stored}
    for name, program in manifest.programs.items():
        _check_program(name, program, stored)
    for record in manifest.captures:
        _check_loop(record, manifest)


def programs_of_capture(record: CaptureRecord) -> set[str]:
    """Names of the programs that a loop runs."""
    routes = [entry.route for entry in record.routes]
    routes += [hoisted.route for hoisted in record.hoisted.values()]
    return {name for route in routes for name in programs_of(route)}


def _check_program(
    name: str, program: ProgramRecord, stored: Iterable[tuple[str, str]]
) -> None:
    where = f"program {name}"
    kinds = [kind.value for kind in InputKind]
    _inside(where, (given.kind for given in program.inputs), kinds)
    for type in (*(given.type for given in program.inputs), *program.outputs):
        _check_type(where, type)
    bound = {"weight", "constant"}
    held = {(g.kind, g.target) for g in program.inputs if g.kind in bound}
    _inside(where, held, stored)
    buffers = [buffer.name for buffer in program.buffers]
    _inside(where, _targets(program, InputKind.BUFFER), buffers)
    _inside(where, program.stores, buffers)
    scalars = [scalar.name for scalar in program.scalars]
    _inside(where, _targets(program, InputKind.SCALAR), scalars)
    parts = (program.stores, program.scores, program.lives)
    if len(program.outputs) != program.results + sum(map(len, parts)):
        raise _wrong(f"{where} has {len(program.outputs)} outputs, and names others")


def _check_type(where: str, type: TensorRecord) -> None:
    if type.shape is None:
        return
    stride = type.stride
    if stride is None or len(stride) != len(type.shape) or min((0, *stride)) < 0:
        raise _wrong(f"{where} has strides {stride} for shape {type.shape}")


def _check_loop(record: CaptureRecord, manifest: Manifest) -> None:
    _inside("a loop", programs_of_capture(record), manifest.programs)
    leaves = [entry.path for entry in record.call if isinstance(entry, TensorLeaf)]
    predicates = record.predicates
    asked = {*record.forced, *record.hoisted}
    for name in programs_of_capture(record):
        program = manifest.programs[name]
        where = f"program {name}"
        _inside(where, _targets(program, InputKind.ARGUMENT), leaves)
        _inside(where, _targets(program, InputKind.DECISION), predicates)
        _inside(where, _targets(program, InputKind.THRESHOLD), manifest.thresholds)
        _inside(where, program.scores, asked)
    _check_decisions(record, manifest)
    if any(not 0 <= entry.index < len(leaves) for entry in record.read):
        raise _wrong("a loop reads a tensor that its call does not have")
    _check_tree(record.output)
    _check_tree(record.named)


def _check_decisions(record: CaptureRecord, manifest: Manifest) -> None:
    """Whatever is asked about a policy can be told, by one of the ways to decide."""
    asked = {*record.forced, *record.hoisted}
    _equal("what decides", (*record.decisions, *asked), record.predicates)
    _equal("the comparisons", record.inclusive, asked)
    _equal("the regions", record.regions, record.predicates)
    _equal("what encloses", record.enclosing, record.predicates)
    _inside("a loop", asked, manifest.thresholds)
    _inside("a loop", record.host, (*record.decisions, *record.hoisted))
    for entry in record.routes:
        if len(entry.signature) != len(record.host):
            raise _wrong("a loop has a signature of another length than its decisions")


def _check_tree(tree: TreeRecord) -> None:
    if tree.kind == "tensor" and tree.type is not None:
        return
    if tree.kind == "plain" and tree.value is not None:
        return
    if tree.kind not in _OUTPUTS:
        raise _wrong(f"no output is a {tree.kind}")
    if tree.kind in ("dict", "output") and len(tree.names) != len(tree.items):
        raise _wrong("an output has names for other fields than it has")
    for item in tree.items:
        _check_tree(item)


def _targets(program: ProgramRecord, kind: InputKind) -> set[str]:
    return {given.target for given in program.inputs if given.kind == kind.value}


def _inside(where: str, names: Iterable[object], known: Iterable[object]) -> None:
    if missing := set(names) - set(known):
        raise _wrong(
            f"{where} refers to {sorted(map(str, missing))}, of which it has none"
        )


def _equal(what: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    if sorted(names) != sorted(wanted):
        raise _wrong(f"{what} is said of {sorted(names)} and not of {sorted(wanted)}")


def _wrong(what: str) -> EngineError:
    return EngineError(
        f"{MANIFEST_FILE} is not what graphcache writes: {what}. Export anew"
    )
