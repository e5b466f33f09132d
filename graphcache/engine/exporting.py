"""Export: from a compiled module to an engine on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from graphcache.engine.describing import Plan, capture_record, module_record
from graphcache.engine.files import records, written_whole
from graphcache.engine.formats import Format, Job, get_format
from graphcache.engine.interfaces import program_record
from graphcache.engine.machine import target_of
from graphcache.engine.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Manifest,
    Target,
)
from graphcache.engine.naming import program_names
from graphcache.engine.sealing import encode
from graphcache.engine.tensors import store_tensors, stored_records
from graphcache.errors import EngineError
from graphcache.lowering import lower
from graphcache.policy.data import number
from graphcache.program import InputKind, Program, Stage
from graphcache.runtime.bar import progress_bar
from graphcache.runtime.module import CompiledModule
from graphcache.runtime.runner import Runner
from graphcache.runtime.weights import Weights, weights_of


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
        CaptureError: If the module is in training mode, or hooked.
    """
    path, form = Path(path), get_format(backend)
    runner = _runner(compiled)
    plans = _plans(runner, lowering, form)
    with written_whole(path, overwrite=overwrite) as folder:
        manifest = _write(folder, runner, plans, form, dict(options or {}), progress)
        (folder / MANIFEST_FILE).write_bytes(encode(manifest))
    return path


def _runner(compiled: nn.Module) -> Runner:
    runner = getattr(compiled, "_graphcache_runner", None)
    if not isinstance(compiled, CompiledModule) or not isinstance(runner, Runner):
        raise EngineError(
            f"{type(compiled).__name__} was not compiled: export takes a module that "
            "graphcache.compile has compiled, such as pipe.transformer"
        )
    runner.refresh()
    if not runner.loops:
        raise EngineError(
            "nothing was captured yet of the module as it is, so that no shapes are "
            "known: call it once, or pass compile(example_inputs=...)"
        )
    return runner


def _plans(runner: Runner, lowering: str | None, form: Format) -> list[Plan]:
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
        plans.append(Plan(index, loop, lowered, program_names(lowered, prefix)))
    return plans


def _write(
    folder: Path,
    runner: Runner,
    plans: list[Plan],
    form: Format,
    options: Mapping[str, Any],
    progress: bool,
) -> Manifest:
    programs = {n: p for plan in plans for n, p in plan.written().items()}
    described = {name: program_record(program) for name, program in programs.items()}
    captures = tuple(map(capture_record, plans))
    module = module_record(runner)
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
        target=_target(device, details),
        module=module,
        policies=tuple(map(repr, runner.target.policies)),
        thresholds={n: number(value) for n, value in runner.thresholds.items()},
        captures=captures,
        programs=described,
        stored=stored_records(stored, tensors),
        details=details,
        files=records(folder),
    )


def _target(device: torch.device, details: Mapping[str, Any]) -> Target:
    """What the engine is for: this machine, unless the format builds for another."""
    target = target_of(device)
    return msgspec.structs.replace(target, device=details.get("device", device.type))


def _tensors(
    module: nn.Module, programs: Mapping[str, Program]
) -> dict[tuple[InputKind, str], Tensor]:
    found: dict[tuple[InputKind, str], Tensor] = {}
    table = weights_of(module)
    for program in programs.values():
        held = program.inputs_of(InputKind.WEIGHT)
        weights = Weights.of(program.inputs, table).read()
        for entry, weight in zip(held, weights, strict=True):
            found[entry.kind, entry.target] = weight.detach()
        for entry in program.inputs_of(InputKind.CONSTANT):
            found[entry.kind, entry.target] = program.constants[entry.target]
    return found
