"""Conditional programs as TensorRT takes them: as ONNX models, with `If` for a gate.

All branches are in one engine, so that weights that are built in are there once.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from graphcache.backends.tensorrt import lasting_inputs
from graphcache.engine.formats import Job
from graphcache.engine.onnx_export import translate
from graphcache.engine.onnx_model import name_values, refer_to_file, save
from graphcache.engine.onnx_names import input_name, output_names, refuse_ambiguous
from graphcache.engine.onnx_session import require
from graphcache.engine.tensors import load_others
from graphcache.passes.conditions import lift_constants
from graphcache.program import Program
from graphcache.tensorrt.interface import Interface, Port, narrow
from graphcache.tensorrt.options import BuildOptions
from graphcache.tensorrt.packages import Builder
from graphcache.tensorrt.parsed import Parsed, build_parsed
from graphcache.tensorrt.prepare import prepare

# Attention is one operator from 23 on, and TensorRT fails on it within a condition.
OPSET = 20


def require_onnx() -> None:
    """Check for the packages that make ONNX models.

    Raises:
        EngineError: If one is missing; the message says what to install.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "a tensorrt engine with conditions")


def build_conditional(
    name: str, program: Program, job: Job, options: BuildOptions, builder: Builder
) -> tuple[Parsed, Interface]:
    """Build one engine with all branches of a program.

    Args:
        name: The program.
        program: A conditional or lowered program.
        job: What it is a part of.
        options: How.
        builder: The package.

    Raises:
        EngineError: If ONNX cannot express the program.
        BackendError: If TensorRT cannot take it or fails.
    """
    path = job.folder / f"{name}.onnx"
    try:
        interface = write_parsable(name, program, job, options.weights, path)
        return build_parsed(path, interface, options, builder), interface
    finally:
        path.unlink(missing_ok=True)


def write_parsable(
    name: str, program: Program, job: Job, weights: str, path: Path
) -> Interface:
    """Write the ONNX model of an engine; its types are those that TensorRT has.

    Args:
        name: The program, for messages.
        program: A conditional or lowered program.
        job: What it is a part of.
        weights: The option of that name.
        path: Where to: beside the weights file.

    Returns:
        The interface of the model, and of its engine, to the program.

    Raises:
        EngineError: If ONNX cannot express the program.
        BackendError: If TensorRT cannot take it.
    """
    built_in = lasting_inputs(program.inputs) if weights == "constants" else frozenset()
    prepared = prepare(program, _converted(program, built_in, job), conditions=True)
    held = lift_constants(prepared.module)
    model = translate(name, program.evolve(module=prepared.module), OPSET)
    interface = _named(program, prepared.interface)
    inputs = [port.name for _, port in interface.inputs]
    outputs = [port.name for port in interface.outputs]
    inner = [f"held.{place}" for place in range(len(held))]
    refuse_ambiguous([*inputs, *inner, *outputs])
    name_values(model, [*inputs, *inner], outputs)
    values = list(model.graph.inputs)
    for (index, _), value in zip(interface.inputs, values, strict=False):
        entry = program.inputs[index]
        if index in built_in:
            refer_to_file(
                model, value, job.stored[entry.kind, entry.target], path.parent
            )
    for value, tensor in zip(values[len(inputs) :], held.values(), strict=True):
        _build_in(model, value, tensor)
    save(model, path)
    outer = tuple(pair for pair in interface.inputs if pair[0] not in built_in)
    return dataclasses.replace(interface, inputs=outer)


def _converted(
    program: Program, built_in: Collection[int], job: Job
) -> dict[int, Tensor]:
    """What is to be built in and is stored in a type that TensorRT has not."""
    keys = {}
    for index in built_in:
        entry = program.inputs[index]
        held = job.stored[entry.kind, entry.target]
        if narrow(held.type.dtype) != held.type.dtype:
            keys[index] = held.key
    if not keys:
        return {}
    tensors = load_others(job.folder, keys.values(), job.device)
    return {index: tensors[key] for index, key in keys.items()}


def _named(program: Program, interface: Interface) -> Interface:
    """The interface with the names that the ONNX format gives."""
    names = dict(zip(interface.sources, output_names(program), strict=True))
    inputs = tuple(
        (index, _renamed(port, input_name(program.inputs[index])))
        for index, port in interface.inputs
    )
    outputs = tuple(
        _renamed(port, names["engine", place])
        for place, port in enumerate(interface.outputs)
    )
    return dataclasses.replace(interface, inputs=inputs, outputs=outputs)


def _renamed(port: Port, name: str) -> Port:
    return dataclasses.replace(port, name=name)


def _build_in(model: Any, value: Any, tensor: Tensor) -> None:
    """Make an initializer of an input."""
    ir = importlib.import_module("onnxscript.ir")
    model.graph.inputs.remove(value)
    if not value.uses():
        return
    value.const_value = ir.tensor(tensor.detach().cpu().contiguous(), name=value.name)
    model.graph.register_initializer(value)
