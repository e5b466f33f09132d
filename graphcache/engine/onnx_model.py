"""The ONNX file of a program: named, and over the one weights file."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from graphcache.engine.formats import WEIGHTS_FILE, Stored, StoredTensor
from graphcache.engine.onnx_export import nodes_of, place_of, translate
from graphcache.engine.onnx_names import (
    HELD,
    element_type,
    input_name,
    output_names,
    refuse_ambiguous,
)
from graphcache.errors import EngineError
from graphcache.program import (
    Program,
    fake_value,
    output_values,
    placeholders,
    static_type,
)


def write_model(
    name: str, program: Program, stored: Stored, path: Path, opset: int
) -> None:
    """Write a program as one ONNX file beside the weights file.

    Args:
        name: The program, for messages.
        program: A lowered or conditional program.
        stored: What the weights file holds.
        path: Where to.
        opset: Version of the ONNX operators.

    Raises:
        EngineError: If the program has an op or a type that ONNX has not.
    """
    inputs, outputs = [input_name(x) for x in program.inputs], output_names(program)
    refuse_ambiguous([*inputs, *outputs])
    _check_types(name, program)
    model = translate(name, program, opset)
    name_values(model, inputs, outputs)
    for value, entry in zip(tuple(model.graph.inputs), program.inputs, strict=True):
        if entry.kind in HELD:
            refer_to_file(model, value, stored[entry.kind, entry.target], path.parent)
    save(model, path)


def name_values(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Make what was translated one graph of values that have names.

    Args:
        model: What `translate` gave.
        inputs: What its inputs are to be called, in order.
        outputs: What its outputs are to be called.
    """
    ir = importlib.import_module("onnxscript.ir")
    _adopt_constants(ir, model.graph)
    _replace_bool_where(ir, model.graph)
    _separate_outputs(ir, model.graph)
    _free_names(ir, model.graph, {*inputs, *outputs})
    for value, given in zip(model.graph.outputs, outputs, strict=True):
        value.name = given
    for value, given in zip(model.graph.inputs, inputs, strict=True):
        value.name = given


def save(model: Any, path: Path) -> None:
    """Write a model, without a trace of where it was made."""
    ir = importlib.import_module("onnxscript.ir")
    _forget_origin(ir, model)
    ir.save(model, path)


def _check_types(name: str, program: Program) -> None:
    """Refuse types that ONNX has not, and sizes that are not known.

    Raises:
        EngineError: With the node, and what to do.
    """
    for node in nodes_of(program.module):
        if isinstance(fake_value(node), Tensor) and static_type(node) is None:
            raise EngineError(
                f"{name}: the size of {place_of(node)} depends on data, and an onnx "
                'engine knows every size beforehand: use backend="aot_inductor"'
            )
    for node in (*placeholders(program.graph), *output_values(program.graph)):
        element_type(fake_value(node).dtype)


def _adopt_constants(ir: Any, graph: Any) -> None:
    """Own the constants that nobody does: of two equal ones, the exporter loses one."""
    count = 0
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            lost = value is not None and value.const_value is not None
            if lost and value.producer() is None and value.graph is None:
                count += 1
                value.name = f"{value.name}__lost_{count}"
                graph.register_initializer(value)


def _replace_bool_where(ir: Any, graph: Any) -> None:
    """Write out a choice between bools, for which ONNX Runtime has no kernel."""
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):
        if node.op_type != "Where" or node.outputs[0].dtype != ir.DataType.BOOL:
            continue
        choice, then, other = node.inputs
        (result,) = node.outputs
        taken = ir.node("And", [choice, then])
        inverse = ir.node("Not", [choice])
        left = ir.node("And", [inverse.outputs[0], other])
        either = ir.node("Or", [taken.outputs[0], left.outputs[0]])
        either.outputs[0].name = f"{result.name}__chosen"
        ir.convenience.replace_nodes_and_values(
            node.graph,
            node,
            [node],
            [taken, inverse, left, either],
            [result],
            [either.outputs[0]],
        )


def _separate_outputs(ir: Any, graph: Any) -> None:
    """Copy what is given back though it is an input or a constant, or given before."""
    given = set()
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or id(value) in given:
            node = ir.node("Identity", [value])
            graph.append(node)
            (copied,) = node.outputs
            copied.type, copied.shape = value.type, value.shape
            graph.outputs[index] = value = copied
        given.add(id(value))


def _free_names(ir: Any, graph: Any, wanted: set[str]) -> None:
    """Rename inner values whose names are to be those of inputs and outputs."""
    inner = [
        *graph.initializers.values(),
        *(v for n in ir.traversal.RecursiveGraphIterator(graph) for v in n.outputs),
    ]
    for value in inner:
        if value.name in wanted:
            value.name = f"{value.name}__inner"


def refer_to_file(model: Any, value: Any, held: StoredTensor, folder: Path) -> None:
    """Make an initializer of an input that lies in the weights file.

    Args:
        model: What the input is one of.
        value: The input.
        held: Where it lies in the file.
        folder: Where the file and the model are.
    """
    ir = importlib.import_module("onnxscript.ir")
    model.graph.inputs.remove(value)
    if not value.uses():
        return
    value.const_value = ir.ExternalTensor(
        WEIGHTS_FILE,
        held.offset,
        held.type.bytes,
        value.dtype,
        shape=value.shape,
        name=value.name,
        base_dir=folder,
    )
    model.graph.register_initializer(value)


def _forget_origin(ir: Any, model: Any) -> None:
    """Drop what the exporter notes about source files: paths of this machine."""
    graph = model.graph
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    values = [value for node in nodes for value in node.outputs]
    values += [*graph.inputs, *graph.initializers.values()]
    for part in (model, graph, *nodes, *values):
        part.metadata_props.clear()
