"""Describing: a module and its loops as the records of a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from graphcache.engine.calls import entries, parameters
from graphcache.engine.decisions import decision_record
from graphcache.engine.interfaces import route_record
from graphcache.engine.manifest import (
    CallEntry,
    CaptureRecord,
    DecisionRecord,
    HoistedRecord,
    ModuleRecord,
    ReadRecord,
    SignatureRoute,
    TensorLeaf,
)
from graphcache.engine.outputs import tree_record, write_record
from graphcache.engine.plain import type_name, type_record
from graphcache.lowering import Lowering
from graphcache.policy.policy import Policy
from graphcache.policy.threshold import Threshold
from graphcache.program import Input, InputKind, Program, fake_value, placeholders
from graphcache.runtime.compiling import CompiledLoop
from graphcache.runtime.instances import bare
from graphcache.runtime.runner import Runner


@dataclass(frozen=True)
class Plan:
    """One loop that is to be written.

    Attributes:
        index: Which of the module's loops it is.
        loop: As compiled.
        lowering: What is written of it.
        programs: Its programs, by name.
    """

    index: int
    loop: CompiledLoop
    lowering: Lowering
    programs: Mapping[str, Program]

    @property
    def names(self) -> dict[int, str]:
        """Names of the programs, by identity."""
        return {id(program): name for name, program in self.programs.items()}

    def written(self) -> dict[str, Program]:
        """The programs; constants are called after the loop, whose they are."""
        return {
            name: _own_constants(_with_dense_arguments(program), self.index)
            for name, program in self.programs.items()
        }

    def read(self) -> dict[str, Tensor]:
        """The values that were compiled in, by the key that they are kept under."""
        return {
            f"read.{self.index}.{entry.index}": entry.value
            for entry in self.loop.values.entries
        }


def _own_constants(program: Program, index: int) -> Program:
    def renamed(entry: Input) -> Input:
        if entry.kind is not InputKind.CONSTANT:
            return entry
        return replace(entry, target=f"{index}.{entry.target}")

    return program.evolve(
        inputs=tuple(map(renamed, program.inputs)),
        constants={f"{index}.{name}": v for name, v in program.constants.items()},
    )


def _with_dense_arguments(program: Program) -> Program:
    """The program for arguments that are not expanded: what is, can be laid out so."""
    copied = program.copy()
    nodes = {node.name: node for node in placeholders(copied.graph)}
    for entry in copied.inputs_of(InputKind.ARGUMENT):
        value = fake_value(nodes[entry.name])
        if 0 in value.stride():
            nodes[entry.name].meta["val"] = value.contiguous()
    return copied


def module_record(runner: Runner) -> ModuleRecord:
    """The record of the module that was compiled.

    Raises:
        EngineError: If its forward has a default that cannot be made again.
    """
    module = runner.module
    config = getattr(module, "config", None)
    plain = dict(config) if isinstance(config, Mapping) else {}
    return ModuleRecord(
        name=type_name(type(bare(module))),
        config=json.dumps(plain, default=str),
        dtype=str(_dtype_of(module)).removeprefix("torch."),
        parameters=parameters(runner.signature),
        open=runner.signature.open,
    )


def _dtype_of(module: nn.Module) -> torch.dtype:
    """What the module says that its dtype is; else that of its first weight."""
    said = getattr(module, "dtype", None)
    if isinstance(said, torch.dtype):
        return said
    weight = next(module.parameters(), None)
    return torch.get_default_dtype() if weight is None else weight.dtype


def _call_entry(entry: CallEntry, loop: CompiledLoop) -> CallEntry:
    """An entry of the call as captured, which holds no data, with its own device."""
    if not isinstance(entry, TensorLeaf):
        return entry
    return TensorLeaf(entry.path, type_record(loop.arguments[entry.path]))


def capture_record(plan: Plan) -> CaptureRecord:
    """The record of one loop.

    Raises:
        EngineError: If a decision, an output or a write is none that can be written.
    """
    loop, lowering, names = plan.loop, plan.lowering, plan.names
    early = lowering.hoisted
    said = {policy.name: _decision_record(policy) for policy in loop.policies}
    return CaptureRecord(
        call=tuple(_call_entry(entry, loop) for entry in entries(loop.form)),
        predicates=loop.predicates,
        host=lowering.host,
        routes=tuple(
            SignatureRoute(signature, route_record(tree, names))
            for signature, tree in lowering.routes.items()
        ),
        decisions={n: said[n] for n in said if n not in loop.rules},
        hoisted={
            name: HoistedRecord(route_record(tree, names), said[name])
            for name, tree in early.items()
        },
        forced={n: said[n] for n in loop.rules if n not in early},
        inclusive={name: rule.inclusive for name, rule in loop.rules.items()},
        regions=dict(loop.regions),
        enclosing={
            name: tuple(tuple(sorted(around)) for around in regions)
            for name, regions in loop.enclosing.items()
        },
        scale=loop.scale,
        output=tree_record(loop.output),
        named=tree_record(loop.named),
        read=tuple(
            ReadRecord(entry.index, f"read.{plan.index}.{entry.index}")
            for entry in loop.values.entries
        ),
        writes=tuple(map(write_record, loop.writes)),
        lowering=lowering.choice.name,
        planned_bytes=lowering.planned_bytes,
    )


def _decision_record(policy: Policy) -> DecisionRecord:
    """What the host decides: all, or when the graph is not asked."""
    decision = policy.decision
    if isinstance(decision, Threshold):
        decision = decision.forced
    return decision_record(policy.name, decision)
