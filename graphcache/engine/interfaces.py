"""Interfaces: what programs take and give, and which follows which, as records."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from graphcache.engine.decisions import scalar_of, scalar_record
from graphcache.engine.formats import Entry
from graphcache.engine.manifest import (
    Branch,
    BufferRecord,
    InputRecord,
    ProgramRecord,
    RouteRecord,
    Straight,
    TensorRecord,
)
from graphcache.engine.plain import tensor_record, tensor_type, type_record
from graphcache.program import (
    Buffer,
    Fork,
    Input,
    InputKind,
    Lowered,
    Program,
    TensorType,
    fake_value,
    output_values,
    placeholders,
)
from graphcache.runtime.segment import Branching, Interface, Route, Segment


def program_record(program: Program) -> ProgramRecord:
    """The record of a lowered program.

    Raises:
        EngineError: If it needs a number that only Python can work out.
    """
    interface = Interface.of(program)
    nodes = {node.name: node for node in placeholders(program.graph)}
    return ProgramRecord(
        inputs=tuple(
            InputRecord(
                entry.name,
                entry.kind.value,
                entry.target,
                tensor_record(fake_value(nodes[entry.name])),
            )
            for entry in program.inputs
        ),
        outputs=tuple(
            tensor_record(fake_value(value)) for value in output_values(program.graph)
        ),
        results=interface.results,
        stores=interface.stores,
        scores=interface.scores,
        lives=interface.lives,
        buffers=tuple(
            BufferRecord(buffer.name, type_record(buffer.type))
            for buffer in interface.buffers
        ),
        scalars=tuple(map(scalar_record, interface.scalars)),
    )


def interface_of(record: ProgramRecord, device: torch.device) -> Interface:
    """What the runtime has to know of a program."""
    return Interface(
        inputs=_inputs(record),
        results=record.results,
        stores=record.stores,
        scores=record.scores,
        lives=record.lives,
        buffers=tuple(
            Buffer(buffer.name, tensor_type(buffer.type, device))
            for buffer in record.buffers
        ),
        scalars=tuple(map(scalar_of, record.scalars)),
    )


def entry_of(name: str, record: ProgramRecord, device: torch.device) -> Entry:
    """What a format has to know of a program."""

    def known(type: TensorRecord) -> TensorType | None:
        return None if type.shape is None else tensor_type(type, device)

    return Entry(
        name=name,
        inputs=_inputs(record),
        types=tuple(known(given.type) for given in record.inputs),
        outputs=tuple(map(known, record.outputs)),
        strides=tuple(given.type.stride for given in record.inputs),
    )


def _inputs(record: ProgramRecord) -> tuple[Input, ...]:
    return tuple(
        Input(given.name, InputKind(given.kind), given.target)
        for given in record.inputs
    )


def route_record(tree: Lowered, names: Mapping[int, str]) -> RouteRecord:
    """Which program follows which.

    Args:
        tree: What a step runs.
        names: Of the programs, by identity.
    """
    if not isinstance(tree, Fork):
        return Straight(names[id(tree)])
    return Branch(
        tree.predicate,
        names[id(tree.head)],
        route_record(tree.compute, names),
        route_record(tree.reuse, names),
    )


def programs_of(record: RouteRecord) -> tuple[str, ...]:
    """Names of the programs that a step may run."""
    if isinstance(record, Straight):
        return (record.program,)
    sides = (*programs_of(record.compute), *programs_of(record.reuse))
    return (record.head, *sides)


def route_of(record: RouteRecord, segments: Mapping[str, Segment]) -> Route:
    """What a step runs, from its record."""
    if isinstance(record, Straight):
        return segments[record.program]
    return Branching(
        record.predicate,
        segments[record.head],
        route_of(record.compute, segments),
        route_of(record.reuse, segments),
    )
