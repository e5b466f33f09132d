"""Capture: a module and one call of it become a source program.

The module is called once as it is (`eager`), so that what it keeps from its first call
is there. Then `torch.export` traces it without strict mode (`export`: no bytecode
analysis, so any Python in the forward simply runs), with the values that the host may
read (`known`). The result is decomposed just far enough to be functional: composite
ops such as `linear`, `layer_norm` and `scaled_dot_product_attention` stay whole. The
program names the module's own parameters; it holds no tensor of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
)

from graphcache import program as ir
from graphcache.analysis.binding import changing
from graphcache.capture.eager import buffers_kept, call_eager, refuse_writes
from graphcache.capture.export import export
from graphcache.capture.known import KnownValues
from graphcache.capture.labels import (
    Scope,
    label_scopes,
    place_functions,
    scopes,
    spreads,
)
from graphcache.capture.outputs import OutputTree, take_tensors
from graphcache.capture.state import State, kept, shell
from graphcache.capture.weights import QuantisedWeight, quantised_weights
from graphcache.capture.writes import Write
from graphcache.errors import CaptureError, VerifyError
from graphcache.locking import compiling
from graphcache.runtime.instances import bare
from graphcache.signature import Call, with_tensors
from graphcache.spec import verify

__all__ = [
    "Capture",
    "OutputTree",
    "Scope",
    "Write",
    "capture",
    "constants_of",
    "inputs_of",
    "scopes",
    "source_program",
]

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)


@dataclass(frozen=True)
class Capture:
    """A source program, what it is good for, and how to give its results back.

    Attributes:
        program: The source program.
        output: What the module returns, with ``return_dict=False`` where it has that.
        named: What it returns with ``return_dict=True``.
        read: Paths of the arguments whose values were compiled in.
        writes: What the forward writes to the containers that it is given.
    """

    program: ir.Program
    output: OutputTree
    named: OutputTree
    read: frozenset[str]
    writes: tuple[Write, ...]


def capture(module: nn.Module, call: Call) -> Capture:
    """Trace one call of `module` into a source program.

    Args:
        module: A module in eval mode.
        call: The call to specialise on: its shapes, dtypes, devices and its
            arguments that are not tensors.

    Raises:
        CaptureError: If the forward cannot be traced, or writes to its parameters,
            buffers or arguments.
    """
    plain = bare(module)
    # Writes are counted outside inference mode only; its weights do not leave it.
    weights = (*module.parameters(), *module.buffers())
    inference = any(weight.is_inference() for weight in weights)
    with (
        compiling(),
        torch.inference_mode(inference),
        torch.no_grad(),
        kept(module, always=False),
        buffers_kept(module),
    ):
        before = State(plain)
        named, writes = call_eager(plain, call)
        if before.changes():
            # What the first call works out, and a call at another step does not change,
            # is no state.
            before = State(plain)
            call_eager(plain, _another_step(call))
            refuse_writes(before.changes())
        traced = _best_trace(shell(plain), call)
    _check_alike(module, traced.output, named)
    _check_writes(module, traced.writes, writes)
    return Capture(traced.program, traced.output, named, traced.read, traced.writes)


def _another_step(call: Call) -> Call:
    """The call with other latents, and with another timestep if it is no index."""
    unknown = changing(dict(zip(call.paths, call.tensors, strict=True)))
    tensors = [
        tensor * 0.5 if path in unknown and tensor.is_floating_point() else tensor
        for path, tensor in zip(call.paths, call.tensors, strict=True)
    ]
    return replace(call, values=with_tensors(call, tensors), tensors=tensors)


@dataclass(frozen=True)
class _Trace:
    program: ir.Program
    output: OutputTree
    writes: tuple[Write, ...]
    read: frozenset[str]
    left: bool


def _best_trace(module: nn.Module, call: Call) -> _Trace:
    """The trace that is good for most calls, of those with which all can be cached.

    One graph serves every mask if the shapes that depend on it are the graph's own. But
    where they spread, what has such a shape is no region.
    """
    try:
        traced = _trace(module, call, shapes=False)
    except CaptureError:
        return _trace(module, call, shapes=True)
    if traced.left and spreads(traced.program.graph):
        try:
            return _trace(module, call, shapes=True)
        except CaptureError:
            return traced
    return traced


def _trace(module: nn.Module, call: Call, *, shapes: bool) -> _Trace:
    read: set[str] = set()
    left: set[bool] = set()

    @contextmanager
    def listening(traced: Sequence[Tensor]) -> Iterator[None]:
        mode = _known_values(call, traced, shapes)
        with mode.listening():
            yield
        read.update(mode.read)
        left.add(mode.left)

    weights = quantised_weights(module)
    found = export(module, call, weights, listening)
    exported = found.program
    graph_module = ir.copy_module(exported.graph_module)
    _drop_assignments(graph_module.graph, exported.graph_signature, call, weights)
    output = take_tensors(graph_module.graph, found.output)
    specs = exported.graph_signature.input_specs
    inputs = inputs_of(graph_module.graph, specs, call, weights)
    constants = constants_of(exported)
    program = source_program(module, graph_module, inputs, constants)
    return _Trace(program, output, found.writes, frozenset(read), any(left))


def source_program(
    module: nn.Module,
    graph_module: fx.GraphModule,
    inputs: tuple[ir.Input, ...],
    constants: Mapping[str, Tensor],
) -> ir.Program:
    """A program of an exported graph, labelled with the module calls of each node.

    Args:
        module: What was traced.
        graph_module: The graph; it returns tensors alone.
        inputs: One per placeholder.
        constants: Tensors that the trace lifted out of the forward.

    Raises:
        CaptureError: If the graph breaks a rule of its stage.
    """
    label_scopes(graph_module.graph, module)
    place_functions(graph_module.graph)
    program = ir.Program(
        stage=ir.Stage.SOURCE,
        module=graph_module,
        inputs=inputs,
        results=len(ir.output_values(graph_module.graph)),
        constants=constants,
    )
    try:
        verify(program)
    except VerifyError as error:
        raise CaptureError(
            f"{type(module).__name__} cannot be compiled: {error}"
        ) from error
    return program


def _known_values(call: Call, traced: Sequence[Tensor], shapes: bool) -> KnownValues:
    arguments = dict(zip(call.paths, call.tensors, strict=True))
    stand_ins = dict(zip(call.paths, traced, strict=True))
    unknown = changing(arguments)
    return KnownValues(
        {
            path: (stand_ins[path], value)
            for path, value in arguments.items()
            if path not in unknown
        },
        {path: stand_ins[path] for path in unknown},
        shapes=shapes,
    )


def _drop_assignments(
    graph: fx.Graph,
    signature: ExportGraphSignature,
    call: Call,
    weights: Sequence[QuantisedWeight],
) -> None:
    """Refuse writes to what the forward reads, and drop those to what it does not.

    A buffer that every call makes anew, and none reads before, is no state.
    """
    sources = {spec.target: spec.arg.name for spec in signature.input_specs}
    inner = [target for weight in weights for target in weight.targets]
    given = dict(zip(signature.user_inputs, [*call.paths, *inner], strict=True))
    nodes = {node.name: node for node in ir.placeholders(graph)}
    kept, written = [], []
    for spec, value in zip(
        signature.output_specs, ir.output_values(graph), strict=True
    ):
        if spec.kind is OutputKind.USER_OUTPUT:
            kept.append(value)
        elif spec.kind is not OutputKind.BUFFER_MUTATION or (
            nodes[sources[spec.target]].users
        ):
            written.append(given.get(str(spec.target), str(spec.target)))
    refuse_writes(written)
    ir.output_node(graph).args = (tuple(kept),)


def _check_alike(module: nn.Module, output: OutputTree, named: OutputTree) -> None:
    pairs = zip(output.tensors, named.tensors, strict=False)
    alike = all(_fits(ours, theirs) for ours, theirs in pairs)
    if len(output.tensors) != len(named.tensors) or not alike:
        shown = [", ".join(map(str, tree.tensors)) for tree in (named, output)]
        raise CaptureError(
            f"{type(module).__name__} returns ({shown[0]}) with return_dict=True and "
            f"({shown[1]}) without: which is which cannot be told"
        )


def _check_writes(
    module: nn.Module, traced: tuple[Write, ...], called: tuple[Write, ...]
) -> None:
    """Refuse a forward that does not write alike at every call."""
    places = [{write.path for write in writes} for writes in (traced, called)]
    if places[0] != places[1]:
        raise CaptureError(
            f"{type(module).__name__} writes to "
            f"{', '.join(sorted(places[0] ^ places[1]))} at one call and not at "
            "another of the same arguments: what it writes cannot be foreseen"
        )


def _fits(traced: ir.TensorType, real: ir.TensorType) -> bool:
    """Whether a tensor has the traced type, as far as its shape is known."""
    known = [
        ours == theirs
        for ours, theirs in zip(traced.shape, real.shape, strict=False)
        if isinstance(ours, int)
    ]
    ranks = len(traced.shape) == len(real.shape)
    return ranks and traced.dtype == real.dtype and all(known)


def constants_of(exported: torch.export.ExportedProgram) -> Mapping[str, Tensor]:
    """Tensors made in the forward or in `__init__` without being registered."""
    wanted = {
        spec.target
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
    return {name: exported.constants[name] for name in sorted(map(str, wanted))}


def inputs_of(
    graph: fx.Graph,
    specs: Sequence[InputSpec],
    call: Call,
    weights: Sequence[QuantisedWeight],
) -> tuple[ir.Input, ...]:
    """Name every placeholder's source; arguments are called after their paths.

    What quantised weights are made of is moved to the front, to the other weights.
    """
    argument, weight = ir.InputKind.ARGUMENT, ir.InputKind.WEIGHT
    inner = [target for held in weights for target in held.targets]
    given = iter([*((argument, p) for p in call.paths), *((weight, t) for t in inner)])
    inputs = []
    for node, spec in zip(ir.placeholders(graph), specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            kind, target = next(given)
            prefix = "p_" if kind is weight else ""
            node._rename(prefix + re.sub(r"\W", "_", target))
        elif spec.kind in _WEIGHTS:
            kind, target = ir.InputKind.WEIGHT, str(spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            kind, target = ir.InputKind.CONSTANT, str(spec.target)
        else:
            raise CaptureError(f"the module holds a {spec.kind.name}: {spec.target}")
        inputs.append(ir.Input(node.name, kind, target))
    if not inner:
        return tuple(inputs)
    return _weights_first(graph, inputs)


def _weights_first(graph: fx.Graph, inputs: Sequence[ir.Input]) -> tuple[ir.Input, ...]:
    """Put the weights ahead of all other inputs, and else leave them as they stand."""
    nodes = {node.name: node for node in ir.placeholders(graph)}
    ordered = sorted(inputs, key=lambda entry: entry.kind is not ir.InputKind.WEIGHT)
    last = graph._root
    for entry in ordered:
        last.append(nodes[entry.name])
        last = nodes[entry.name]
    return tuple(ordered)
