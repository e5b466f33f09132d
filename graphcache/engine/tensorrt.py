"""The tensorrt format: one serialized engine per program.

By default the engines hold no weights: those are inputs, read from the one weights file
into the one copy that all engines share.

Straight lines are converted by torch_tensorrt. An export with conditions goes through
ONNX, and each program of it is one engine with all branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphcache.backends.registry import Executable
from graphcache.backends.tensorrt import check_precision, lasting_inputs
from graphcache.engine.formats import Entry, Job
from graphcache.engine.tensorrt_onnx import build_conditional, require_onnx
from graphcache.engine.tensors import load_others
from graphcache.errors import BackendError, EngineError
from graphcache.program import Input, InputKind, Program, Stage
from graphcache.tensorrt.build import build_engine
from graphcache.tensorrt.interface import Interface
from graphcache.tensorrt.options import BuildOptions, parse_options
from graphcache.tensorrt.packages import (
    Builder,
    load_builder,
    load_compiler,
    load_runtime,
)
from graphcache.tensorrt.prepare import prepare
from graphcache.tensorrt.runtime import EngineRunner


class TensorRTFormat:
    """Engines of either flavour of TensorRT, for one version and one GPU."""

    name = "tensorrt"
    conditions = True
    # They do not depend on torch, and on the GPU in a way that `open` checks itself.
    portable = True

    def write(self, job: Job) -> Mapping[str, Any]:
        """Build an engine for every program.

        Args:
            job: Its options are the fields of
                `graphcache.tensorrt.options.BuildOptions`.

        Raises:
            EngineError: If an option is unknown or cannot be honoured, a program cannot
                be taken, a package is missing, or TensorRT fails.
        """
        options = parse_options(job.options, EngineError)
        for program in job.programs.values():
            check_precision(program, options, EngineError)
        capability = options.compute_capability or _present(job.device)
        if capability is None:
            raise EngineError(
                "there is no GPU here to build for: say which one the engine is for, "
                "such as options={'compute_capability': '8.9'}"
            )
        builder, make = _maker(job, options)
        _check_capability(capability, _present(job.device), builder)
        programs = {}
        for name, program in job.programs.items():
            programs[name] = _write(name, program, job, options, make)
            job.advance()
        return {
            "device": "cuda",
            "flavour": builder.flavour,
            "version": builder.version,
            "compute_capability": capability,
            "weights": options.weights,
            "programs": programs,
        }

    def open(
        self,
        folder: Path,
        entries: Sequence[Entry],
        details: Mapping[str, Any],
        device: torch.device,
        tensors: Mapping[tuple[InputKind, str], Tensor],
    ) -> Mapping[str, Executable]:
        """Load every engine.

        Raises:
            EngineError: If there is no GPU, or the engines were built for another one,
                by another version, or with a flavour that is not installed.
        """
        check_present(details, device)
        tensorrt = load_runtime(details["flavour"], EngineError)
        if tensorrt.__version__ != details["version"]:
            raise EngineError(
                f"the engine was built with {tensorrt.__name__} {details['version']}, "
                f"and this is {tensorrt.__version__}: export it anew, or install that "
                "version"
            )
        return {
            entry.name: EngineRunner(
                entry.name,
                engine_path(folder, entry.name).read_bytes(),
                Interface.from_json(details["programs"][entry.name]["interface"]),
                lasting_inputs(entry.inputs),
                tensorrt,
                device,
                EngineError,
            )
            for entry in entries
        }


def engine_path(folder: Path, name: str) -> Path:
    """The file of a program."""
    return folder / f"{name}.engine"


def check_present(details: Mapping[str, Any], device: torch.device) -> None:
    """Refuse engines that were not built for the GPU that is here.

    Raises:
        EngineError: Saying what they were built for.
    """
    wanted = details["compute_capability"]
    if device.type != "cuda" or not torch.cuda.is_available():
        raise EngineError(
            f"the engine was built for a GPU of compute capability {wanted}, and "
            f"{'torch finds no GPU here' if device.type == 'cuda' else device} "
            "cannot run it"
        )
    found = _present(device)
    if found != wanted:
        raise EngineError(
            f"the engine was built for a GPU of compute capability {wanted}, and this "
            f"one has {found}: export it here, or with "
            f"options={{'compute_capability': '{found}'}}"
        )


def _present(device: torch.device) -> str | None:
    """The compute capability of the GPU that is here; None if there is none."""
    if not torch.cuda.is_available():
        return None
    place = device if device.type == "cuda" else None
    major, minor = torch.cuda.get_device_capability(place)
    return f"{major}.{minor}"


def _check_capability(capability: str, present: str | None, builder: Builder) -> None:
    if builder.flavour != "rtx" and capability != present:
        raise EngineError(
            "TensorRT builds on the GPU that it builds for, which is "
            f"{present or 'none'} and not {capability}: export there, or install "
            "torch-tensorrt-rtx, which builds for others"
        )


@dataclass(frozen=True)
class _Made:
    """An engine, and how its inputs and outputs are those of its program."""

    data: bytes
    interface: Interface
    conditions: int = 0


_Maker = Callable[[str, Program], _Made]


def _maker(job: Job, options: BuildOptions) -> tuple[Builder, _Maker]:
    """What builds the engines of a job, and the packages that it does so with.

    Raises:
        EngineError: If a package is missing.
    """
    if any(part.stage is Stage.CONDITIONAL for part in job.programs.values()):
        require_onnx()
        builder = load_builder(EngineError)

        def parse(name: str, program: Program) -> _Made:
            made, interface = build_conditional(name, program, job, options, builder)
            return _Made(made.data, interface, made.conditions)

        return builder, parse
    compiler = load_compiler(EngineError)

    def convert(name: str, program: Program) -> _Made:
        frozen = _frozen(program, job) if options.weights == "constants" else {}
        prepared = prepare(program, frozen)
        data = build_engine(prepared, options, compiler)
        return _Made(data, prepared.interface)

    return compiler, convert


def _write(
    name: str, program: Program, job: Job, options: BuildOptions, make: _Maker
) -> dict[str, Any]:
    """Build one engine; what `open` will need of it, and what is in it."""
    try:
        made = make(name, program)
    except BackendError as error:
        raise EngineError(f"{name}: {error}") from error
    engine_path(job.folder, name).write_bytes(made.data)
    lasting = lasting_inputs(program.inputs) if options.weights == "constants" else ()
    held = [job.stored[_place(program.inputs[index])].type.bytes for index in lasting]
    return {
        "interface": made.interface.to_json(),
        "bytes": len(made.data),
        "weight_bytes": sum(held),
        "conditions": made.conditions,
    }


def _frozen(program: Program, job: Job) -> dict[int, Tensor]:
    """What is to be built in, by index of the input."""
    keys = {
        index: job.stored[_place(program.inputs[index])].key
        for index in lasting_inputs(program.inputs)
    }
    tensors = load_others(job.folder, keys.values(), job.device)
    return {index: tensors[key] for index, key in keys.items()}


def _place(entry: Input) -> tuple[InputKind, str]:
    return entry.kind, entry.target
