"""Dynamo: a graph that `torch.compile` traced becomes a source program.

Dynamo hands over a graph of torch functions. Its inputs are whatever the forward read,
weights and arguments mixed, in the order in which it came across them. The graph is
run in the place of the module's forward, and that is exported as every forward is, with
each node under the module calls that Dynamo noted on it. So the program is the one that
`graphcache.capture.capture` makes of the module.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ExportGraphSignature, OutputKind

from graphcache import program as ir
from graphcache.capture import (
    Capture,
    constants_of,
    inputs_of,
    source_program,
)
from graphcache.capture.eager import refuse_writes
from graphcache.capture.export import Export, export
from graphcache.capture.frame import TracedFrame, name_of
from graphcache.capture.outputs import take_tensors
from graphcache.capture.state import shell
from graphcache.capture.weights import QuantisedWeight, quantised_weights
from graphcache.errors import BackendError
from graphcache.locking import compiling
from graphcache.runtime.instances import bare
from graphcache.signature import Call, is_lazy, resolved

_DATA = torch._C._autograd._get_data_attr  # type: ignore[attr-defined]


@dataclass(frozen=True)
class GraphInputs:
    """What a graph of Dynamo's is called with.

    Attributes:
        bound: By place, the name of the tensor, or the number, that is given there.
        weights: Places of the module's tensors, by every name that they have.
        arguments: Places of the call's tensors, by path.
        call: The traced call, flat, with the arguments that the graph reads.
        held: Tensors that the module holds without having registered them.
        lazy: Places of tensors with a negation or conjugation noted on them.
    """

    bound: tuple[str | int, ...]
    weights: Mapping[str, int]
    arguments: Mapping[str, int]
    call: Call
    held: Mapping[str, Tensor]
    lazy: frozenset[int]

    @staticmethod
    def of(graph: fx.Graph, frame: TracedFrame) -> GraphInputs:
        """Tell the inputs of a graph apart: each is the module's or the call's.

        A size or a number that Dynamo left open is closed, so that Dynamo compiles
        anew where it is another one.

        Raises:
            BackendError: If an input is neither.
        """
        nodes = ir.placeholders(graph)
        given = [_example(node) for node in nodes]
        places = {id(v): i for i, v in enumerate(given) if isinstance(v, Tensor)}
        weights = _places(places, _registered(frame.module))
        pairs = zip(frame.call.paths, frame.call.tensors, strict=True)
        owned = set(weights.values())
        arguments = {p: i for p, i in _places(places, pairs).items() if i not in owned}
        known = owned | set(arguments.values())
        held = {
            _source_in(frame, nodes[place]): place
            for place in places.values()
            if place not in known
        }
        named = {**weights, **arguments, **held}
        names = {id(given[i]): name for name, i in reversed(named.items())}
        return GraphInputs(
            bound=tuple(v if isinstance(v, int) else names[id(v)] for v in given),
            weights={**weights, **held},
            arguments=arguments,
            call=_flat_call(frame.call, arguments),
            lazy=frozenset(
                place
                for place, value in enumerate(given)
                if isinstance(value, Tensor) and is_lazy(value)
            ),
            held={
                names[id(value)]: resolved(value)
                for value in given
                if isinstance(value, Tensor) and names[id(value)] in held
            },
        )

    @property
    def traced(self) -> Call:
        """The call as it is exported: what the module holds is given to it as well."""
        return replace(
            self.call,
            values={**self.call.values, **self.held},
            tensors=[*self.call.tensors, *self.held.values()],
            paths=[*self.call.paths, *self.held],
        )


def _example(node: fx.Node) -> Tensor | int:
    """The real tensor, or the number, that an input had when it was traced.

    Numbers that are no integers come as tensors, whose values Dynamo does not know.
    """
    fake, given = node.meta["example_value"], node.meta["grapharg"]
    if isinstance(fake, (int, torch.SymInt)):
        return int(fake)
    if not isinstance(given.example, Tensor) or given.pass_arg_as_tensor:
        raise BackendError(
            f"the graph takes {name_of(given.source)}, which is no tensor and was left "
            "open: pass dynamic=False to torch.compile, so that it is compiled in"
        )
    for extent in (*fake.shape, *fake.stride(), fake.storage_offset()):
        int(extent)
    return given.example


def _registered(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _places(
    places: Mapping[int, int], named: Iterator[tuple[str, Tensor]]
) -> dict[str, int]:
    return {name: places[id(value)] for name, value in named if id(value) in places}


def _source_in(frame: TracedFrame, node: fx.Node) -> str:
    """A name for a tensor that the module holds, after what Dynamo calls it."""
    source, owner = name_of(node.meta["grapharg"].source), name_of(frame.source)
    if not source.startswith(owner):
        raise BackendError(
            f"the graph takes {source}, which is neither an argument of "
            f"{type(frame.module).__name__}.forward nor held by the module: pass it "
            "as an argument, or register it as a buffer"
        )
    return re.sub(r"\W+", "_", source.removeprefix(owner)).strip("_")


def _flat_call(call: Call, read: Collection[str]) -> Call:
    """The call as tensors by path, of the arguments that are read, and numbers."""
    pairs = zip(call.paths, call.tensors, strict=True)
    tensors = {path: resolved(tensor) for path, tensor in pairs if path in read}
    plain = {k: v for k, v in call.values.items() if isinstance(v, (int, float))}
    return Call(
        values={**plain, **tensors},
        tensors=list(tensors.values()),
        paths=list(tensors),
        key=call.key,
        return_dict=None,
    )


def capture_graph(
    graph_module: fx.GraphModule, frame: TracedFrame, inputs: GraphInputs
) -> Capture:
    """Turn a graph of Dynamo's into a source program.

    Args:
        graph_module: What Dynamo made of a call.
        frame: The call.
        inputs: What its inputs are.

    Raises:
        CaptureError: If the graph cannot be exported, or writes to what it is given.
    """
    stand_in = shell(uncompiled(frame.module))
    graph = _labelled(graph_module, frame)
    stand_in.__dict__["forward"] = _forward(graph, inputs, stand_in)
    weights = (*frame.module.parameters(), *frame.module.buffers())
    inference = any(weight.is_inference() for weight in weights)
    quantised = quantised_weights(stand_in, by_dynamo=True)
    with compiling(), torch.inference_mode(inference), torch.no_grad():
        found = export(stand_in, inputs.traced, quantised, lambda _: nullcontext())
    refuse_writes(_written(found.program.graph_signature, inputs.traced, quantised))
    return _captured(found, frame, inputs, quantised)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module as its class defines it, where ``module.compile()`` was called."""
    plain = bare(module)
    plain.__dict__["_compiled_call_impl"] = None
    return plain


def _written(
    signature: ExportGraphSignature, call: Call, weights: Sequence[QuantisedWeight]
) -> list[str]:
    """What the graph writes to; unlike a forward, it makes no buffers anew."""
    inner = [target for weight in weights for target in weight.targets]
    given = dict(zip(signature.user_inputs, [*call.paths, *inner], strict=True))
    return [
        given.get(str(spec.target), str(spec.target))
        for spec in signature.output_specs
        if spec.kind is not OutputKind.USER_OUTPUT
    ]


def _captured(
    found: Export,
    frame: TracedFrame,
    inputs: GraphInputs,
    weights: Sequence[QuantisedWeight],
) -> Capture:
    exported = found.program
    module = ir.copy_module(exported.graph_module)
    output = take_tensors(module.graph, found.output)
    specs = exported.graph_signature.input_specs
    table = tuple(
        replace(entry, kind=ir.InputKind.WEIGHT)
        if entry.target in inputs.weights
        else entry
        for entry in inputs_of(module.graph, specs, inputs.traced, weights)
    )
    program = source_program(frame.module, module, table, constants_of(exported))
    return Capture(program, output, output, frozenset(), ())


def _forward(graph: fx.GraphModule, inputs: GraphInputs, module: nn.Module) -> Any:
    """The graph as a forward: of the call's tensors, over the module's weights."""

    def value_of(bound: str | int, values: Mapping[str, Any]) -> Any:
        if isinstance(bound, int):
            return bound
        if bound in values:
            return values[bound]
        path, _, name = bound.rpartition(".")
        return getattr(module.get_submodule(path), name)

    def forward(**values: Any) -> Any:
        flat = [value_of(bound, values) for bound in inputs.bound]
        with fx.traceback.preserve_node_meta():
            return fx.Interpreter(graph).run(*flat)

    return forward


def _labelled(graph_module: fx.GraphModule, frame: TracedFrame) -> fx.GraphModule:
    """A copy whose nodes name the calls that enclose them as those of an export do.

    Dynamo names a call by the identity of the module, and leaves out the root.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    parts = dict(frame.module.named_modules(remove_duplicate=False))
    first = {str(id(part)): path for path, part in reversed(parts.items())}
    root = {"": ("", type(frame.module))}
    for node in graph.nodes:
        if node.target is _DATA:
            # What it gives is unknown to a trace, which takes it for a constant.
            node.target = torch.detach
        stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
        calls = dict(root)
        for key, (source, kind) in stack.items():
            identity, mark, count = key.partition("@")
            path = _path_in(frame, source)
            if identity not in first:
                # Made by the forward itself: no part of the module.
                continue
            if str(id(parts.get(path))) != identity:
                path = first[identity]
            calls[f"{path}{mark}{count}"] = (path, kind)
        node.meta["nn_module_stack"] = calls
    return fx.GraphModule(graph_module, graph)


def _path_in(frame: TracedFrame, source: str) -> str:
    """The path of a module that Dynamo calls ``L['self']._modules['blocks'].0``."""
    names = re.findall(r"\w+", source.removeprefix(name_of(frame.source)))
    return ".".join(name for name in names if name not in ("__dict__", "_modules"))
