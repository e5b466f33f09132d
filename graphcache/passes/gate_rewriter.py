"""Gates: a region of a graph is replaced by one `gate` op over explicit buffers.

What insert-gates does, one gate and one decision at a time.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from graphcache.analysis.dataflow import operands_of
from graphcache.ops import functions_of
from graphcache.ops import gate as gate_op
from graphcache.passes.branches import (
    Sides,
    branch,
    buffer_like,
    compact,
    finish,
    inline,
    laid_out,
    pinned,
    same_layout,
    storage_key,
)
from graphcache.passes.tracing import scalar_like, trace
from graphcache.policy.threshold import Threshold
from graphcache.program import (
    Gate,
    Input,
    InputKind,
    Metric,
    Program,
    Region,
    fake_value,
    output_values,
    placeholders,
)

_CALLERS = (InputKind.ARGUMENT, InputKind.WEIGHT, InputKind.CONSTANT)


def insert_input(graph: fx.Graph, name: str, value: Any) -> fx.Node:
    """Append a placeholder after the others."""
    with graph.inserting_after(placeholders(graph)[-1]):
        node = graph.placeholder(name)
    node.meta["val"] = value
    return node


def last_of(graph: fx.Graph, nodes: Iterable[fx.Node]) -> fx.Node:
    """The last of the nodes in graph order; the last placeholder if all are inputs."""
    wanted = {*nodes, placeholders(graph)[-1]}
    found: fx.Node = next(node for node in reversed(graph.nodes) if node in wanted)
    return found


def first_reader(graph: fx.Graph, nodes: Sequence[fx.Node]) -> fx.Node:
    """The first node outside `nodes` that reads one of them."""
    inside = set(nodes)
    readers = {user for node in nodes for user in node.users} - inside
    found: fx.Node = next(node for node in graph.nodes if node in readers)
    return found


def decide(
    decision: Threshold, score: Tensor, threshold: Tensor, forced: Tensor
) -> Any:
    """Whether to compute, as a ``bool[]``: `Threshold.computes` in the graph."""
    value = score.to(torch.float64)
    if decision.indicator.inclusive:
        beyond = value.ge(threshold)
    else:
        beyond = value.gt(threshold)
    odd = value.isfinite().logical_not()
    return [beyond.logical_or(odd).logical_or(threshold.eq(0)).logical_or(forced)]


@dataclass
class GateRewriter:
    """Replaces the regions of one program, one gate at a time."""

    program: Program
    nodes: dict[str, fx.Node]
    inputs: list[Input]
    dense: bool = False
    decisions: dict[str, fx.Node] = field(default_factory=dict)
    thresholds: dict[str, fx.Node] = field(default_factory=dict)
    scalars: dict[str, fx.Node] = field(default_factory=dict)
    buffers: dict[str, fx.Node] = field(default_factory=dict)
    stores: dict[str, fx.Node] = field(default_factory=dict)
    scores: dict[str, fx.Node] = field(default_factory=dict)
    members: dict[str, list[fx.Node]] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        kinds = {entry.name: entry.kind for entry in self.program.inputs}
        self.foreign = {
            storage_key(fake_value(node))
            for node in placeholders(self.program.graph)
            if kinds[node.name] in _CALLERS and isinstance(fake_value(node), Tensor)
        }

    @property
    def graph(self) -> fx.Graph:
        return self.program.graph

    def add_input(
        self, name: str, kind: InputKind, target: str, value: Tensor
    ) -> fx.Node:
        name = name.replace(".", "_").replace("@", "_").replace("?", "")
        node = insert_input(self.graph, name.replace(":", "_"), value)
        self.inputs.append(Input(node.name, kind, target))
        return node

    def add_numbers(self) -> None:
        """Inputs for decisions, thresholds and scalars."""
        example = _example(self.graph)
        number = scalar_like(example)
        for predicate in self.program.predicates:
            self.decisions[predicate] = self.add_input(
                f"decision_{predicate}", InputKind.DECISION, predicate, _bool(example)
            )
        for metric in self.program.metrics:
            name = metric.predicate
            self.thresholds[name] = self.add_input(
                f"threshold_{name}", InputKind.THRESHOLD, name, number
            )
        for scalar in self.program.scalars:
            self.scalars[scalar.name] = self.add_input(
                f"scalar_{scalar.name}", InputKind.SCALAR, scalar.name, number
            )

    def add_buffers(
        self, names: Sequence[str], values: Sequence[Tensor], *, dense: bool = False
    ) -> list[fx.Node]:
        """Inputs for buffers, with the strides that their first values will have."""
        copies = [True] * len(values) if dense else pinned(values)
        for name, value, copied in zip(names, values, copies, strict=True):
            self.buffers[name] = self.add_input(
                f"cache_{name}",
                InputKind.BUFFER,
                name,
                buffer_like(value, contiguous=copied),
            )
        return [self.buffers[name] for name in names]

    def measure(self, metric: Metric) -> None:
        """Work out a decision of the graph, and let its gates obey it."""
        indicator = metric.decision.indicator
        observed = [self.nodes[name] for name in metric.observed]
        fakes = [fake_value(node) for node in observed]
        with fakes[0].fake_mode:
            initial = list(indicator.initial(fakes))
        buffers = self.add_buffers(metric.buffers, initial, dense=True)
        scalars = [self.scalars[name] for name in metric.scalars]
        groups = [observed, buffers, scalars]
        traced = trace(
            indicator.measure, *[[fake_value(n) for n in group] for group in groups]
        )
        anchor = last_of(self.graph, [*observed, *buffers])
        with self.graph.inserting_before(anchor.next):
            measured = inline(traced, self.graph, [n for g in groups for n in g])
            self._decide(metric, measured[0])
        self.scores[metric.predicate] = measured[0]
        if buffers:
            self._remember(metric, measured, buffers)

    def _decide(self, metric: Metric, score: fx.Node) -> None:
        name = metric.predicate
        operands = [score, self.thresholds[name], self.decisions[name]]
        fakes = [[fake_value(node)] for node in operands]

        def flat(*groups: list[Tensor]) -> Any:
            return decide(metric.decision, *(group[0] for group in groups))

        (decision,) = inline(trace(flat, *fakes), self.graph, operands)
        self.decisions[name] = decision

    def _remember(
        self, metric: Metric, measured: list[fx.Node], buffers: list[fx.Node]
    ) -> None:
        """The gate of the indicator's own buffers."""
        indicator = metric.decision.indicator
        operands = list(dict.fromkeys(measured))
        fakes = [[fake_value(node) for node in g] for g in (measured, buffers)]
        sides = []
        for function in (indicator.update, indicator.carry):
            graph = branch(operands, buffers)
            outer = dict(zip((*operands, *buffers), placeholders(graph), strict=True))
            given = [outer[node] for node in (*measured, *buffers)]
            held = inline(trace(function, *fakes), graph, given)
            kept = [
                laid_out(graph, value, buffer)
                for value, buffer in zip(
                    compact(graph, held, self.foreign), buffers, strict=True
                )
            ]
            sides.append(finish(graph, kept, self.program.module))
        anchor = last_of(self.graph, [*operands, self.decisions[metric.predicate]])
        with self.graph.inserting_before(anchor.next):
            values, _ = self._insert(
                metric.predicate, f"?{metric.predicate}", sides, operands, buffers
            )
        self.stores.update(zip(metric.buffers, values, strict=True))

    def replace(self, gate: Gate, region: Region) -> None:
        """Put a gate in the place of a region."""
        nodes = self._current(region)
        results = [self.nodes[name] for name in region.results]
        inside = set(nodes)
        inner = [name for name, node in self.stores.items() if node in inside]
        streams = [self.nodes[name] if name else None for name in gate.operands]
        scalars = [self.scalars[name] for name in gate.scalars]
        fakes = [fake_value(node) for node in results]
        with fakes[0].fake_mode:
            initial = list(
                gate.predictor.initial(
                    fakes, [None if n is None else fake_value(n) for n in streams]
                )
            )
        own = self.add_buffers(gate.buffers, initial, dense=self.dense)
        buffers = [*own, *(self.buffers[name] for name in inner)]
        wanted = [*operands_of(nodes), *filter(None, streams), *scalars]
        operands = [n for n in dict.fromkeys(wanted) if n not in set(buffers)]
        sides = Sides(
            gate,
            operands,
            buffers,
            streams,
            scalars,
            self.program.module,
            self.foreign,
        )
        carried = [self.stores[name] for name in inner]
        pair = self._sides(sides, nodes, results, carried)
        with self.graph.inserting_before(self._anchor(nodes, operands)):
            values, members = self._insert(
                gate.predicate, gate.region, pair, operands, buffers
            )
        self._rewire(results, values, inside)
        self.stores.update(
            zip((*gate.buffers, *inner), values[len(results) :], strict=True)
        )
        self.members[region.name] = members
        for node in reversed(nodes):
            self.graph.erase_node(node)

    def _sides(
        self,
        sides: Sides,
        nodes: Sequence[fx.Node],
        results: Sequence[fx.Node],
        carried: Sequence[fx.Node],
    ) -> list[fx.GraphModule]:
        """Both branches; a buffer that they lay out differently becomes dense."""
        while True:
            pair = [sides.compute(nodes, results, carried), sides.reuse()]
            start = len(results)
            odd = [
                node
                for index, node in enumerate(sides.buffers[: sides.own])
                for side in pair
                if not same_layout(
                    fake_value(output_values(side.graph)[start + index]),
                    fake_value(node),
                )
            ]
            if not odd:
                return pair
            for node in odd:
                node.meta["val"] = buffer_like(fake_value(node), contiguous=True)

    def _anchor(self, nodes: Sequence[fx.Node], operands: Sequence[fx.Node]) -> fx.Node:
        """Before the first reader; or after all else, if only the caller reads it."""
        inside = set(nodes)
        if any(user not in inside for node in nodes for user in node.users):
            return first_reader(self.graph, nodes)
        return last_of(self.graph, operands).next

    def _current(self, region: Region) -> list[fx.Node]:
        """The region's nodes as they are now, gates inside it among them."""
        wanted = {self.nodes[name] for name in region.nodes if name in self.nodes}
        own = set(region.nodes)
        for name, members in self.members.items():
            if own.issuperset(self.program.region(name).nodes):
                wanted.update(members)
        wanted.update(held for node in list(wanted) for held in functions_of(node))
        return [node for node in self.graph.nodes if node in wanted]

    def _rewire(
        self, results: list[fx.Node], values: list[fx.Node], inside: set[fx.Node]
    ) -> None:
        for node, value in zip(results, values, strict=False):
            node.replace_all_uses_with(
                value, delete_user_cb=lambda user: user not in inside
            )
        renamed = dict(zip(results, values, strict=False))
        # A later region may read a result or hold the gate: it finds it by this name.
        self.nodes = {
            name: renamed.get(node, node)
            for name, node in self.nodes.items()
            if node in renamed or node not in inside
        }

    def _insert(
        self,
        predicate: str,
        region: str,
        branches: Sequence[fx.GraphModule],
        operands: Sequence[fx.Node],
        buffers: Sequence[fx.Node],
    ) -> tuple[list[fx.Node], list[fx.Node]]:
        """Insert a gate; returns its outputs and every node made for it."""
        graph, module = self.graph, self.program.module
        number, self.count = self.count, self.count + 1
        names = [f"gate_{number}_compute", f"gate_{number}_reuse"]
        for name, child in zip(names, branches, strict=True):
            module.add_submodule(name, child)
        outputs = [fake_value(value) for value in output_values(branches[0].graph)]
        pair = [graph.get_attr(name) for name in names]
        node = graph.call_function(
            gate_op,
            (self.decisions[predicate], *pair, tuple(operands), tuple(buffers)),
            name=f"gate_{number}",
        )
        node.meta = {
            "val": tuple(outputs),
            "custom": {"region": region, "predicate": predicate},
        }
        values = []
        for index, value in enumerate(outputs):
            item = graph.call_function(operator.getitem, (node, index))
            item.meta["val"] = value
            values.append(item)
        return values, [*pair, node, *values]


def _example(graph: fx.Graph) -> Tensor:
    """A fake tensor of the mode that the graph's values live in, a weight if any."""
    found: Tensor = next(
        value for value in map(fake_value, graph.nodes) if hasattr(value, "fake_mode")
    )
    return found


def _bool(example: Tensor) -> Tensor:
    with example.fake_mode:  # type: ignore[attr-defined]
        return torch.empty((), dtype=torch.bool, device="cpu")
