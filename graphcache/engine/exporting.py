"""Export: from a compiled module to an engine on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.engine.calls import entries, parameters
from graphcache.engine.decisions import decision_record
from graphcache.engine.files import records, written_whole
from graphcache.engine.formats import Format, Job, get_format
from graphcache.engine.interfaces import program_record, route_record
from graphcache.engine.machine import target_of
from graphcache.engine.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    CaptureRecord,
    DecisionRecord,
    HoistedRecord,
    Manifest,
    ModuleRecord,
    ReadRecord,
    SignatureRoute,
    encode,
)
from graphcache.engine.naming import program_names
from graphcache.engine.outputs import tree_record, write_record
from graphcache.engine.plain import type_name
from graphcache.engine.tensors import store_tensors, stored_records
from graphcache.errors import EngineError
from graphcache.lowering import Lowering, lower
from graphcache.policy.policy import Policy
from graphcache.policy.threshold import Threshold
from graphcache.program import Input, InputKind, Program, Stage
from graphcache.runtime.bar import progress_bar
from graphcache.runtime.compiling import CompiledLoop
from graphcache.runtime.instances import bare
from graphcache.runtime.module import CompiledModule
from graphcache.runtime.runner import Runner


def export(
    compiled: nn.Module,
    path: str | Path,
    *,
    backend: str = "aot_inductor",
    lowering: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a compiled module as an engine, to be run without the model's source.

    The engine holds what was captured so far: one loop for each shape that the module
    was called with, or the one of ``compile(example_inputs=...)``. The weights are
    written once.

    Args:
        compiled: What `graphcache.compile` returned, on the device that is to run it.
        path: The folder to make.
        backend: ``"aot_inductor"``, ``"onnx"`` or ``"tensorrt"``.
        lowering: As for `graphcache.compile`; None for that of `compiled`.
        options: The backend's options.
        overwrite: Whether an engine at `path` may be replaced.
        progress: Whether to show a progress bar.

    Returns:
        The path.

    Raises:
        EngineError: If there is nothing to export, the backend cannot take it, or the
            folder cannot be written. Nothing at `path` changes then.
        BackendError: If the lowering is unknown or cannot lower the policies.
    """
    path, form = Path(path), get_format(backend)
    runner = _runner(compiled)
    plans = _plans(runner, lowering, form)
    with written_whole(path, overwrite=overwrite) as folder:
        manifest = _write(folder, runner, plans, form, dict(options or {}), progress)
        (folder / MANIFEST_FILE).write_bytes(encode(manifest))
    return path


@dataclass(frozen=True)
class _Plan:
    """One loop that is to be written."""

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
            name: _own_constants(program, self.index)
            for name, program in self.programs.items()
        }

    def read(self) -> dict[str, Tensor]:
        """The values that were compiled in, by the key that they are kept under."""
        return {
            f"read.{self.index}.{entry.index}": entry.value
            for entry in self.loop.values.entries
        }


def _runner(compiled: nn.Module) -> Runner:
    runner = getattr(compiled, "_graphcache_runner", None)
    if not isinstance(compiled, CompiledModule) or not isinstance(runner, Runner):
        raise EngineError(
            f"{type(compiled).__name__} was not compiled: export takes what "
            "graphcache.compile returns"
        )
    if not runner.loops:
        raise EngineError(
            "nothing was captured yet, so that no shapes are known: call the module "
            "once, or pass compile(example_inputs=...)"
        )
    return runner


def _plans(runner: Runner, lowering: str | None, form: Format) -> list[_Plan]:
    plans = []
    for index, loop in enumerate(runner.loops):
        program = loop.source.program
        if program.stage is not Stage.CACHED:
            raise EngineError("this module only measures: there is no cache to export")
        wanted = runner.target.lowering if lowering is None else lowering
        lowered = lower(program, loop.policies, wanted)
        if lowered.choice.name == "conditional" and not form.conditions:
            raise EngineError(
                f'backend {form.name!r} takes no conditions: pass lowering="auto", '
                "which makes straight lines"
            )
        prefix = f"loop{index}_" if len(runner.loops) > 1 else ""
        plans.append(_Plan(index, loop, lowered, program_names(lowered, prefix)))
    return plans


def _own_constants(program: Program, index: int) -> Program:
    def renamed(entry: Input) -> Input:
        if entry.kind is not InputKind.CONSTANT:
            return entry
        return replace(entry, target=f"{index}.{entry.target}")

    return program.evolve(
        inputs=tuple(map(renamed, program.inputs)),
        constants={f"{index}.{name}": v for name, v in program.constants.items()},
    )


def _write(
    folder: Path,
    runner: Runner,
    plans: list[_Plan],
    form: Format,
    options: Mapping[str, Any],
    progress: bool,
) -> Manifest:
    programs = {n: p for plan in plans for n, p in plan.written().items()}
    described = {name: program_record(program) for name, program in programs.items()}
    captures = tuple(map(_capture_record, plans))
    module = _module_record(runner)
    tensors = _tensors(runner.module, programs)
    kept = {key: value for plan in plans for key, value in plan.read().items()}
    stored = store_tensors(folder, tensors, kept)
    device = plans[0].loop.device
    with progress_bar("exporting", len(programs), shown=progress) as advance:
        job = Job(programs, folder, stored, device, options, advance)
        details = dict(form.write(job))
    return Manifest(
        format=FORMAT_VERSION,
        backend=form.name,
        target=target_of(device),
        module=module,
        policies=tuple(map(repr, runner.target.policies)),
        thresholds=dict(runner.thresholds),
        captures=captures,
        programs=described,
        stored=stored_records(stored, tensors),
        details=details,
        files=records(folder),
    )


def _tensors(
    module: nn.Module, programs: Mapping[str, Program]
) -> dict[tuple[InputKind, str], Tensor]:
    weights = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    found: dict[tuple[InputKind, str], Tensor] = {}
    for program in programs.values():
        for entry in program.inputs:
            if entry.kind is InputKind.WEIGHT:
                found[entry.kind, entry.target] = weights[entry.target].detach()
            elif entry.kind is InputKind.CONSTANT:
                found[entry.kind, entry.target] = program.constants[entry.target]
    return found


def _module_record(runner: Runner) -> ModuleRecord:
    module = runner.module
    config = getattr(module, "config", None)
    plain = dict(config) if isinstance(config, Mapping) else {}
    weight = next(module.parameters(), None)
    dtype = torch.get_default_dtype() if weight is None else weight.dtype
    return ModuleRecord(
        name=type_name(type(bare(module))),
        config=json.dumps(plain, default=str),
        dtype=str(dtype).removeprefix("torch."),
        parameters=parameters(runner.signature),
        open=runner.signature.open,
    )


def _capture_record(plan: _Plan) -> CaptureRecord:
    loop, lowering, names = plan.loop, plan.lowering, plan.names
    early = lowering.hoisted
    said = {policy.name: _decision_record(policy) for policy in loop.policies}
    return CaptureRecord(
        call=entries(loop.form),
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
