"""The onnx format: one ONNX file per program, all over the one weights file.

The files are standard ONNX with external data, for ONNX Runtime and for whatever else
reads them. State is explicit: buffers are inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphcache.backends.registry import Executable
from graphcache.engine.formats import Entry, Job
from graphcache.engine.onnx_model import write_model
from graphcache.engine.onnx_session import (
    OnnxExecutable,
    open_session,
    require,
    shared_weights,
)
from graphcache.errors import EngineError
from graphcache.program import InputKind, Program, fake_value, placeholders

_OPSETS = range(20, 23)


class OnnxFormat:
    """ONNX files, run by ONNX Runtime."""

    name = "onnx"
    conditions = True
    portable = True

    def write(self, job: Job) -> Mapping[str, Any]:
        """Translate every program, and see that ONNX Runtime takes it.

        Options: ``opset``, the version of the operators, 20 (the default) to 22; and
        ``prepack``, whether each program may have a copy of the weights in the order
        that its kernels like best, which is faster and takes their size once more.

        Raises:
            EngineError: If an option is unknown, a package is missing, ONNX cannot
                express an op, or ONNX Runtime has no kernel for one.
        """
        options = _options(job.options)
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package)
        for name, program in job.programs.items():
            path = job.folder / f"{name}.onnx"
            write_model(name, program, job.stored, path, options["opset"])
            open_session(path, job.device, optimize=False, advice=_advice(program))
            job.advance()
        return options

    def open(
        self,
        folder: Path,
        entries: Sequence[Entry],
        details: Mapping[str, Any],
        device: torch.device,
        tensors: Mapping[tuple[InputKind, str], Tensor],
    ) -> Mapping[str, Executable]:
        """Load every program over the one copy of the weights.

        Raises:
            EngineError: If ONNX Runtime is missing or cannot run a program.
        """
        prepack = _options(details)["prepack"]
        runs = {}
        for entry in entries:
            path = folder / f"{entry.name}.onnx"
            weights = shared_weights(entry, tensors)
            session = open_session(path, device, prepack=prepack, weights=weights)
            runs[entry.name] = OnnxExecutable(session, entry, weights)
        return runs


def _advice(program: Program) -> str:
    """What to do if ONNX Runtime cannot run a program, as far as one can tell."""
    types = [fake_value(node).dtype for node in placeholders(program.graph)]
    if torch.bfloat16 not in types:
        return ""
    return " (it has few kernels for bf16: export the module in float16 or float32)"


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option, those that were not given at their defaults.

    Raises:
        EngineError: For an unknown option, or a value that is not supported.
    """
    options: dict[str, Any] = {"opset": _OPSETS[0], "prepack": False}
    unknown = sorted(set(given) - set(options))
    if unknown:
        raise EngineError(
            f"the onnx format has no option {', '.join(unknown)}: it has "
            + ", ".join(options)
        )
    options |= given
    opset, prepack = options["opset"], options["prepack"]
    if type(opset) is not int or opset not in _OPSETS:
        raise EngineError(
            f"opset is {opset!r}: the onnx format writes {_OPSETS[0]} to {_OPSETS[-1]}"
        )
    if type(prepack) is not bool:
        raise EngineError(f"prepack is {prepack!r}: say True or False")
    return options
