"""From a program to ONNX operators, by torch's exporter.

The exporter is given the program as it is, as the result of an export: nothing is
traced again. Weights are inputs there, like everything else that the program reads, so
that none of them is touched.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils._pytree import tree_structure

from graphcache.capture.labels import scopes
from graphcache.engine.onnx_prepare import prepared
from graphcache.errors import EngineError
from graphcache.program import Program, output_values, placeholders

_FAULT = re.compile(r"%(\w+) : .*?target=torch\.ops\.([\w.]+)")


def translate(name: str, program: Program, opset: int) -> Any:
    """The program as an `onnx_ir.Model`; its inputs and outputs are in our order.

    Args:
        name: The program, for messages.
        program: A lowered or conditional program.
        opset: Version of the ONNX operators.

    Raises:
        EngineError: If ONNX has no operator for what the program does.
    """
    try:
        with _silenced():
            written = torch.onnx.export(
                as_exported(program),
                (),
                dynamo=True,
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _refusal(name, program, error) from error
    assert written is not None
    return written.model


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what exporters say of packages they could do without, and of torch."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def as_exported(program: Program) -> ExportedProgram:
    """The program as `torch.export` would give it: every placeholder is the user's."""
    module = prepared(program.module)
    inputs, outputs = placeholders(module.graph), output_values(module.graph)
    signature = ExportGraphSignature(
        [
            InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None)
            for node in inputs
        ],
        [
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None)
            for node in outputs
        ],
    )
    call = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=tree_structure(((0,) * len(inputs), {})),
        out_spec=tree_structure((0,) * len(outputs)),
    )
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict={},
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", call)],
    )


def _refusal(name: str, program: Program, error: Exception) -> EngineError:
    """What the exporter could not translate, and where it comes from."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    found = next(filter(None, map(_FAULT.search, causes)), None)
    name_of_node, op = found.groups() if found else ("", "it")
    places = _nodes_with(program.module, op)
    if found and not places:
        # What the exporter has made of another op, which is not told.
        with _silenced():
            whole = as_exported(program).run_decompositions(dict(decomposition_table))
        places = _nodes_with(whole.graph_module, op)
    places.sort(key=lambda node: node.name != name_of_node)
    where = f" ({place_of(places[0])})" if places else ""
    return EngineError(
        f"{name}: ONNX cannot express {op}{where}. Choose a policy that does without "
        'it, or backend="aot_inductor", which takes every op. torch.onnx says: '
        + causes[-1].strip()
    )


def _nodes_with(module: fx.GraphModule, op: str) -> list[fx.Node]:
    return [node for node in nodes_of(module) if str(node.target) == op]


def nodes_of(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Every node of a graph and of the branches in it."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes


def place_of(node: fx.Node) -> str:
    """Where a node comes from: the module, and the line of source if it is known."""
    place = f"node {node.name}"
    calls = scopes(node)
    if calls and calls[-1].path:
        place += f" of {calls[-1].path}"
    trace = (node.meta.get("stack_trace") or "").splitlines()
    lines = [line.strip() for line in trace if line.strip().startswith("File ")]
    return f"{place}, {lines[-1]}" if lines else place
