"""AOTInductor: every program a model of one ``.pt2`` package.

Weights are inputs, as in the programs themselves: the package holds code alone, and all
programs are given the same tensors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.package.package import package_aoti

from graphcache.backends.inductor import check_options
from graphcache.backends.registry import Executable
from graphcache.engine.formats import Entry, Job
from graphcache.engine.tensors import laid_out
from graphcache.errors import BackendError, EngineError
from graphcache.program import (
    InputKind,
    Program,
    copy_module,
    fake_value,
    output_node,
    output_values,
    placeholders,
)

PACKAGE_FILE = "programs.pt2"
_BOUND = (InputKind.WEIGHT, InputKind.CONSTANT)
_OPTIONS = {"aot_inductor.package": True, "aot_inductor.package_constants_in_so": False}


class AotInductorFormat:
    """Compiles with `torch._inductor.aot_compile`."""

    name = "aot_inductor"
    conditions = True
    portable = False

    def write(self, job: Job) -> Mapping[str, Any]:
        """Compile every program and pack the libraries.

        Args:
            job: Its options are Inductor's, such as ``{"max_autotune": True}``.

        Raises:
            EngineError: If an option is unknown or Inductor fails.
        """
        try:
            check_options(job.options)
        except BackendError as error:
            raise EngineError(str(error)) from error
        files = {}
        for name, program in job.programs.items():
            files[name] = _compile(name, program, job.options)
            job.advance()
        try:
            package_aoti(str(job.folder / PACKAGE_FILE), files)
        except RuntimeError as error:
            # Whatever the writer of archives meets, such as a disk that is full.
            raise EngineError(f"{PACKAGE_FILE} cannot be written: {error}") from error
        return {}

    def open(
        self,
        folder: Path,
        entries: Sequence[Entry],
        details: Mapping[str, Any],
        device: torch.device,
        tensors: Mapping[tuple[InputKind, str], Tensor],
    ) -> Mapping[str, Executable]:
        """Load every library of the package.

        Raises:
            EngineError: If one cannot be loaded.
        """
        index = -1 if device.type == "cpu" else device.index or 0
        path = str(folder / PACKAGE_FILE)
        found: dict[str, Executable] = {}
        for entry in entries:
            try:
                loader = torch._C._aoti.AOTIModelPackageLoader(
                    path, entry.name, False, 1, index
                )
            except RuntimeError as error:
                raise EngineError(
                    f"{path} cannot be loaded on {device}: {error}{_library(error)}"
                ) from error
            found[entry.name] = _executable(loader.boxed_run, entry)
        return found


def _library(error: RuntimeError) -> str:
    """What to import, if an operator of another library is missing."""
    found = re.search(r"schema for (\w+)::", str(error))
    if found is None:
        return ""
    return (
        f" The engine calls an operator of {found[1]}: import the library that brings "
        "it before the engine is loaded"
    )


def _compile(name: str, program: Program, options: Mapping[str, Any]) -> Any:
    module = _with_tuple(program)
    inputs = tuple(fake_value(node) for node in placeholders(module.graph))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own deprecations are not the user's business.
            warnings.simplefilter("ignore")
            return torch._inductor.aot_compile(
                module, inputs, options={**options, **_OPTIONS}
            )
    except Exception as error:
        raise EngineError(f"inductor failed on {name}: {error}") from error


def _with_tuple(program: Program) -> fx.GraphModule:
    copied = copy_module(program.module)
    output_node(copied.graph).args = (tuple(output_values(copied.graph)),)
    copied.recompile()
    return copied


def _executable(run: Callable[[list[Any]], list[Tensor]], entry: Entry) -> Executable:
    """The library as a function; it does not look at strides, so that is done here."""
    strides = [
        (index, entry.strides[index])
        for index, given in enumerate(entry.inputs)
        if given.kind not in _BOUND
    ]

    def call(values: list[Any]) -> list[Tensor]:
        for index, stride in strides:
            if stride is not None and values[index].stride() != stride:
                values[index] = laid_out(values[index], stride)
        return run(values)

    return call
