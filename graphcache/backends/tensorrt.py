"""TensorRT: one engine per lowered program, all over one copy of the weights.

Weights are inputs of an engine like everything else, so that the variants share what is
on the device, and a weight that is written in place is seen. PyTorch runs none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphcache.backends.registry import Capabilities, Executable
from graphcache.errors import BackendError, GraphCacheError
from graphcache.program import Input, InputKind, Program, fake_value, placeholders
from graphcache.tensorrt.build import build_engine
from graphcache.tensorrt.options import PRECISIONS, BuildOptions, parse_options
from graphcache.tensorrt.packages import load_compiler
from graphcache.tensorrt.prepare import prepare, refuse
from graphcache.tensorrt.runtime import EngineRunner
from graphcache.tensorrt.support import report


class TensorRTBackend:
    """Compiles with torch_tensorrt's converters, in either flavour of TensorRT."""

    name = "tensorrt"
    capabilities = Capabilities(compiles=True)

    def compile(self, program: Program, options: Mapping[str, Any]) -> Executable:
        """Build an engine for the shapes recorded in the program.

        Args:
            program: A lowered program.
            options: The fields of `graphcache.tensorrt.options.BuildOptions`.

        Raises:
            BackendError: If an option is unknown or cannot be honoured, the program
                cannot be taken, a package is missing, or TensorRT fails.
        """
        chosen = parse_options(options, BackendError)
        _refuse_options(chosen)
        refuse(program)
        check_precision(program, chosen, BackendError)
        device = _device(program)
        compiler = load_compiler(BackendError)
        prepared = prepare(program)
        data = build_engine(prepared, chosen, compiler)
        return EngineRunner(
            "program",
            data,
            prepared.interface,
            lasting_inputs(program.inputs),
            compiler.tensorrt,
            device,
            BackendError,
        )

    def explain(self, programs: Sequence[Program]) -> tuple[str, ...]:
        """What would become of programs, in lines; nothing is built."""
        return report(programs)


def lasting_inputs(inputs: Sequence[Input]) -> frozenset[int]:
    """Which inputs are weights and constants."""
    lasting = (InputKind.WEIGHT, InputKind.CONSTANT)
    return frozenset(i for i, entry in enumerate(inputs) if entry.kind in lasting)


def check_precision(
    program: Program, options: BuildOptions, error: type[GraphCacheError]
) -> None:
    """Refuse a precision that is not the module's.

    Args:
        program: What is to be built.
        options: How.
        error: What to raise.

    Raises:
        GraphCacheError: Of type `error`, naming both precisions.
    """
    if options.precision is None:
        return
    wanted, found = PRECISIONS[options.precision], precision_of(program)
    if found is not None and found != wanted:
        raise error(
            f"precision is {options.precision!r}, and the module is in {found}: an "
            f"engine computes in the types of its graph. Convert the module, "
            f".to({wanted}), before it is compiled"
        )


def precision_of(program: Program) -> torch.dtype | None:
    """The dtype of most of a program's weights; None if it has none."""
    nodes = {node.name: node for node in placeholders(program.graph)}
    sizes: Counter[torch.dtype] = Counter()
    for entry in program.inputs_of(InputKind.WEIGHT):
        value = fake_value(nodes[entry.name])
        if value.dtype.is_floating_point:
            sizes[value.dtype] += value.numel()
    return sizes.most_common(1)[0][0] if sizes else None


def _refuse_options(options: BuildOptions) -> None:
    if options.weights != "inputs":
        raise BackendError(
            "weights='constants' freezes the weights, and a compiled module reads them "
            "at every call: it is an option of graphcache.export"
        )
    if options.compute_capability is not None:
        raise BackendError(
            "compute_capability is for another GPU than the present one, and a "
            "compiled module runs here: it is an option of graphcache.export"
        )


def _device(program: Program) -> torch.device:
    """Where the program runs.

    Raises:
        BackendError: If that is no CUDA device.
    """
    devices: set[torch.device] = {
        fake_value(node).device for node in placeholders(program.graph)
    }
    found = [device for device in devices if device.type == "cuda"]
    if len(found) != 1:
        shown = ", ".join(sorted(map(str, devices)))
        raise BackendError(
            f"tensorrt runs on one CUDA device, and this module is on {shown}: move it "
            'there, .to("cuda"), or use graphcache.export with compute_capability= to '
            "build ahead of time"
        )
    return found[0]
