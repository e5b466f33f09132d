"""join-guidance: the full batch, or the conditional half and a prediction.

Two programs of one model become one: a gate whose compute branch is the model on the
batch ``[unconditional, conditional]``, and whose reuse branch is the model on the
conditional half, followed by the prediction of the other. Gates of attention are inside
the reuse branch; the compute branch computes everything and keeps for them what
concerns the conditional half.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from graphcache.ops import gate as gate_op
from graphcache.passes.branches import branch, buffer_like, compact, finish, inline
from graphcache.passes.tracing import predicting, scalar_like, trace
from graphcache.policy.fastercache import GuidanceConfig
from graphcache.program import (
    Buffer,
    Gate,
    Input,
    InputKind,
    Outputs,
    Program,
    Region,
    Stage,
    TensorType,
    fake_value,
    placeholders,
    set_outputs,
)

PREDICATE = "guidance"
REGION = "model:guidance"
_ORDER = tuple(InputKind)
_slice = torch.ops.aten.slice.Tensor


@dataclass
class _Joiner:
    """Builds the joined program.

    Args:
        full: The lowered program of the full batch: everything computes.
        half: The cached program of the conditional half.
        config: How the unconditional half is predicted.
        batched: Paths of the arguments that hold both halves.
    """

    full: Program
    half: Program
    config: GuidanceConfig
    batched: frozenset[str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    nodes: dict[tuple[InputKind, str], fx.Node] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)

    def run(self) -> Program:
        """The joined program."""
        outputs = [fake_value(value) for value in self.full.outputs.results]
        with outputs[0].fake_mode:
            held = list(self.config.predictor.initial(outputs, []))
        own = tuple(
            Buffer(f"{REGION}.{index}", TensorType.of(value))
            for index, value in enumerate(held)
        )
        self._add_inputs(own, held)
        buffers = [
            self.nodes[InputKind.BUFFER, buffer.name]
            for buffer in (*own, *self.half.buffers)
        ]
        operands = [
            node
            for (kind, target), node in self.nodes.items()
            if kind is not InputKind.BUFFER
            and (kind, target) != (InputKind.DECISION, PREDICATE)
        ]
        root = torch.nn.Module()
        root.add_module("guidance_compute", self._compute(operands, buffers, len(own)))
        root.add_module("guidance_reuse", self._reuse(operands, buffers, len(own)))
        values = self._gate(root, operands, buffers)
        count = len(outputs)
        self.graph.output(())
        set_outputs(
            self.graph, Outputs(tuple(values[:count]), tuple(values[count:]), (), ())
        )
        return self._program(fx.GraphModule(root, self.graph, "Program"), own, count)

    def _add_inputs(self, own: Sequence[Buffer], held: Sequence[Tensor]) -> None:
        """The inputs of both programs, by kind; arguments as in the full batch."""
        wanted: dict[tuple[InputKind, str], Any] = {}
        for program in (self.full, self.half):
            values = {node.name: node for node in placeholders(program.graph)}
            for entry in program.inputs:
                key = entry.kind, entry.target
                wanted.setdefault(key, fake_value(values[entry.name]))
        example = next(iter(wanted.values()))
        with example.fake_mode:
            wanted[InputKind.DECISION, PREDICATE] = torch.empty((), dtype=torch.bool)
        for scalar in self.config.predictor.scalars:
            wanted[InputKind.SCALAR, scalar.name] = scalar_like(example)
        for buffer, value in zip(own, held, strict=True):
            wanted[InputKind.BUFFER, buffer.name] = buffer_like(value, contiguous=True)
        for kind, target in sorted(wanted, key=lambda key: _ORDER.index(key[0])):
            node = self.graph.placeholder(_identifier(kind, target))
            node.meta["val"] = wanted[kind, target]
            self.nodes[kind, target] = node
            self.inputs.append(Input(node.name, kind, target))

    def _start(
        self, operands: Sequence[fx.Node], buffers: Sequence[fx.Node]
    ) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        graph = branch(operands, buffers)
        inner = placeholders(graph)
        return graph, dict(zip((*operands, *buffers), inner, strict=True))

    def _bound(
        self, program: Program, values: Mapping[fx.Node, fx.Node]
    ) -> list[fx.Node]:
        return [values[self.nodes[e.kind, e.target]] for e in program.inputs]

    def _compute(
        self, operands: list[fx.Node], buffers: list[fx.Node], own: int
    ) -> fx.GraphModule:
        graph, values = self._start(operands, buffers)
        given = inline(self.full.graph, graph, self._bound(self.full, values))
        results = given[: self.full.results]
        stored = dict(zip(self.full.stores, given[self.full.results :], strict=True))
        fakes = [fake_value(value) for value in results]
        update = self.config.predictor.update
        traced = trace(lambda outputs: update(outputs, [], [], []), fakes)
        deltas = compact(graph, inline(traced, graph, results), ())
        kept = [
            stored.get(buffer.name, values[node])
            for buffer, node in zip(self.half.buffers, buffers[own:], strict=True)
        ]
        return finish(graph, [*results, *deltas, *kept], self.full.module)

    def _reuse(
        self, operands: list[fx.Node], buffers: list[fx.Node], own: int
    ) -> fx.GraphModule:
        graph, values = self._start(operands, buffers)
        bound = [
            self._second_half(graph, node)
            if entry.kind is InputKind.ARGUMENT and entry.target in self.batched
            else node
            for entry, node in zip(
                self.half.inputs, self._bound(self.half, values), strict=True
            )
        ]
        given = inline(self.half.graph, graph, bound)
        conditional = given[: self.half.results]
        stores = dict(zip(self.half.stores, given[self.half.results :], strict=True))
        predictor = self.config.predictor
        scalars = [
            values[self.nodes[InputKind.SCALAR, s.name]] for s in predictor.scalars
        ]
        groups = [conditional, [values[node] for node in buffers[:own]], scalars]
        fakes = [[fake_value(node) for node in group] for group in groups]
        traced = trace(predicting(predictor), *fakes)
        predicted = inline(traced, graph, [node for group in groups for node in group])
        kept = [
            stores.get(buffer.name, values[node])
            for buffer, node in zip(self.half.buffers, buffers[own:], strict=True)
        ]
        return finish(graph, [*predicted, *kept], self.half.module)

    def _second_half(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        value = fake_value(node)
        size = value.shape[0]
        half = graph.call_function(_slice, (node, 0, size // 2, size))
        with value.fake_mode:
            half.meta["val"] = _slice(value, 0, size // 2, size)
        return half

    def _gate(
        self, root: torch.nn.Module, operands: list[fx.Node], buffers: list[fx.Node]
    ) -> list[fx.Node]:
        names = ("guidance_compute", "guidance_reuse")
        # get_attr asks the owning module, which there is not yet.
        pair = [self.graph.create_node("get_attr", name) for name in names]
        node = self.graph.call_function(
            gate_op,
            (
                self.nodes[InputKind.DECISION, PREDICATE],
                *pair,
                tuple(operands),
                tuple(buffers),
            ),
            name="gate_guidance",
        )
        side: Any = root.get_submodule(names[0])
        outputs = [fake_value(v) for v in side.graph.output_node().args[0]]
        node.meta = {
            "val": tuple(outputs),
            "custom": {"region": REGION, "predicate": PREDICATE},
        }
        values = []
        for index, value in enumerate(outputs):
            item = self.graph.call_function(operator.getitem, (node, index))
            item.meta["val"] = value
            values.append(item)
        return values

    def _program(
        self, module: fx.GraphModule, own: tuple[Buffer, ...], results: int
    ) -> Program:
        buffers = (*own, *self.half.buffers)
        names = tuple(buffer.name for buffer in own)
        predictor = self.config.predictor
        gate = Gate(
            REGION,
            PREDICATE,
            predictor,
            names,
            scalars=tuple(scalar.name for scalar in predictor.scalars),
        )
        region = Region(REGION, "", "model", "", False, "", (), (), ())
        scalars = {s.name: s for s in (*self.half.scalars, *predictor.scalars)}
        return Program(
            stage=Stage.CACHED,
            module=module,
            inputs=tuple(self.inputs),
            results=results,
            stores=tuple(buffer.name for buffer in buffers),
            regions=(region, *self.half.regions),
            gates=(gate, *self.half.gates),
            buffers=buffers,
            scalars=tuple(scalars.values()),
            constants={**self.full.constants, **self.half.constants},
        )


def _identifier(kind: InputKind, target: str) -> str:
    prefix = {
        InputKind.WEIGHT: "p_",
        InputKind.CONSTANT: "c_",
        InputKind.BUFFER: "cache_",
        InputKind.DECISION: "decision_",
        InputKind.SCALAR: "scalar_",
    }.get(kind, "")
    letters = (letter if letter.isalnum() else "_" for letter in target)
    return prefix + "".join(letters)


def join_guidance(
    full: Program, half: Program, config: GuidanceConfig, batched: frozenset[str]
) -> Program:
    """One program of the model on the full batch and on its conditional half.

    Args:
        full: The lowered program of the full batch; its stores are those of `half`.
        half: The cached or source program of the conditional half.
        config: How the unconditional half is predicted.
        batched: Paths of the arguments that hold both halves.
    """
    return _Joiner(full, half, config, batched).run()
