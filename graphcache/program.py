"""The program: one denoising step as data.

A `Program` is an `fx.GraphModule` in functional ATen together with the tables that
say what its placeholders and outputs are, which regions were found in it, and which
of them are gated. Passes take a program and return a new one; nothing here knows
how a region is found or how a gate is lowered.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from graphcache.policy.predictors import Predictor
    from graphcache.policy.scalars import Scalar
    from graphcache.policy.threshold import Threshold


class Stage(enum.Enum):
    """How far a program has come; `graphcache.spec` holds the rules of each stage."""

    SOURCE = "source"
    """As captured: functional ATen, no gates."""
    CACHED = "cached"
    """Gated regions are `gate` ops over explicit buffers and decisions."""
    LOWERED = "lowered"
    """No decision is left: straight-line ATen, ready for a backend."""
    CONDITIONAL = "conditional"
    """Gates are `torch.cond`: one graph with all branches."""


class InputKind(enum.Enum):
    """What a placeholder stands for, and so what the runtime binds to it."""

    WEIGHT = "weight"
    """A parameter or buffer of the captured module, by its qualified name."""
    CONSTANT = "constant"
    """A tensor that capture lifted out of the forward; the program owns it."""
    ARGUMENT = "argument"
    """A tensor argument of the call, by its path in the signature."""
    DECISION = "decision"
    """A bool scalar on the CPU, by predicate: compute (True) or reuse (False); for a
    decision that the graph takes, compute without asking (True) or decide (False)."""
    SCALAR = "scalar"
    """A number that the host works out for each step, as a 0-dim f64 tensor."""
    THRESHOLD = "threshold"
    """The threshold of a decision that the graph takes, by predicate: a 0-dim f64."""
    LIVE = "live"
    """A value that an earlier segment of the same step computed, by its name."""
    BUFFER = "buffer"
    """A cache buffer, by its name."""


@dataclass(frozen=True)
class TensorType:
    """Shape, dtype and device of a tensor; prints as ``f32[2, 64]``."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(value: Tensor) -> TensorType:
        """The type of a real or fake tensor."""
        return TensorType(tuple(value.shape), value.dtype, value.device)

    @property
    def bytes(self) -> int:
        """Size in bytes of a dense tensor of this type."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * self.dtype.itemsize

    def __str__(self) -> str:
        shape = ", ".join(str(extent) for extent in self.shape)
        return f"{dtype_name(self.dtype)}[{shape}]"


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype: ``f32``, ``bf16``, ``i64``, ``bool``."""
    name = str(dtype).removeprefix("torch.")
    for long, short in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i")):
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


@dataclass(frozen=True)
class Input:
    """One placeholder of the graph and what is bound to it."""

    name: str
    kind: InputKind
    target: str


@dataclass(frozen=True)
class Region:
    """The nodes of one call of one module, found in the graph.

    Attributes:
        name: The module path, with ``@n`` for the n-th further call of the module.
        path: The module path, as in ``named_modules()``.
        kind: What the region computes: ``"attention"``, ``"feed-forward"``,
            ``"block"``, ``"run"`` (of blocks), ``"module"`` or ``"model"``.
        flow: For attention, ``"self"``, ``"joint"`` or ``"cross"``, from dataflow.
        declares_cross: What the module itself says in ``is_cross_attention``.
        module_class: Qualified name of the module's class.
        nodes: Names of the region's nodes, in graph order.
        operands: Names of the values it reads, in order of first use.
        results: Names of the tensors that are read outside it, in graph order.
        streams: Names of the operands that are streams, which its results continue;
            empty if any operand may be.
    """

    name: str
    path: str
    kind: str
    flow: str
    declares_cross: bool
    module_class: str
    nodes: tuple[str, ...]
    operands: tuple[str, ...]
    results: tuple[str, ...]
    streams: tuple[str, ...] = ()


@dataclass(frozen=True)
class Buffer:
    """A cache buffer: state that the program reads and writes explicitly."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Gate:
    """A region tagged for caching: the whole plan that later passes read.

    Attributes:
        region: Name of the gated region.
        predicate: Name of the decision that the gate obeys.
        predictor: What stands in for the region when it is not computed.
        buffers: Names of the gate's buffers, in the predictor's order.
        operands: For a predictor that continues a stream: per result, the value of
            its stream before the region, or ``""`` where there is none.
        scalars: Names of the predictor's scalars, in its order.
    """

    region: str
    predicate: str
    predictor: Predictor
    buffers: tuple[str, ...]
    operands: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A decision that the graph takes: what it looks at and what it remembers.

    Attributes:
        predicate: Name of the decision.
        decision: The indicator, the threshold and when it is not asked.
        observed: Names of the values that the indicator measures.
        buffers: Names of the indicator's buffers, in its order.
        scalars: Names of the indicator's scalars, in its order.
    """

    predicate: str
    decision: Threshold
    observed: tuple[str, ...]
    buffers: tuple[str, ...]
    scalars: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """What a graph returns, by what it is for; each part in its table's order."""

    results: tuple[Any, ...]
    stores: tuple[Any, ...]
    scores: tuple[Any, ...]
    lives: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """One denoising step.

    Attributes:
        stage: Which rules hold for the graph.
        module: The graph; its submodules are the branches of the gates.
        inputs: One entry per placeholder, in placeholder order.
        results: How many leading outputs belong to the caller.
        stores: Names of the buffers that the outputs after the results replace.
        regions: Regions found in the graph, in graph order.
        gates: Regions tagged for caching, the innermost first, then in graph order.
        metrics: Decisions that the graph takes, in the order in which it can.
        buffers: Every cache buffer of gates and metrics, in their order.
        scalars: Every number that the host works out for each step.
        scores: Predicates whose scores are the outputs after the stores.
        lives: Names of the values handed to later segments: the last outputs.
        constants: Tensors that capture lifted out of the forward.
    """

    stage: Stage
    module: fx.GraphModule
    inputs: tuple[Input, ...]
    results: int
    stores: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    gates: tuple[Gate, ...] = ()
    metrics: tuple[Metric, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    scalars: tuple[Scalar, ...] = ()
    scores: tuple[str, ...] = ()
    lives: tuple[str, ...] = ()
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The fx graph."""
        return self.module.graph

    @property
    def predicates(self) -> tuple[str, ...]:
        """Names of the decisions the gates obey, in order of first use."""
        return tuple(dict.fromkeys(gate.predicate for gate in self.gates))

    @property
    def outputs(self) -> Outputs:
        """What the graph returns, by what it is for."""
        values = list(output_values(self.graph))
        parts = []
        for size in (self.results, len(self.stores), len(self.scores)):
            parts.append(tuple(values[:size]))
            values = values[size:]
        return Outputs(parts[0], parts[1], parts[2], tuple(values))

    def metric(self, predicate: str) -> Metric | None:
        """How the graph takes a decision; None if the host does."""
        return next((m for m in self.metrics if m.predicate == predicate), None)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of buffers that one stream needs."""
        return sum(buffer.type.bytes for buffer in self.buffers)

    def inputs_of(self, kind: InputKind) -> tuple[Input, ...]:
        """The inputs of one kind, in placeholder order."""
        return tuple(entry for entry in self.inputs if entry.kind is kind)

    def region(self, name: str) -> Region:
        """The region called `name`."""
        return next(region for region in self.regions if region.name == name)

    def evolve(self, **changes: Any) -> Program:
        """A copy with the given fields replaced."""
        return replace(self, **changes)

    def copy(self) -> Program:
        """A copy with a graph of its own, for a pass to edit."""
        return self.evolve(module=copy_module(self.module))

    def __str__(self) -> str:
        from graphcache.printer import format_program

        return format_program(self)


@dataclass(frozen=True)
class Fork:
    """A program cut at a decision that the graph takes.

    Attributes:
        predicate: The decision.
        head: Works out its score.
        compute: What follows if the regions are computed.
        reuse: What follows if they are not.
    """

    predicate: str
    head: Program
    compute: Lowered
    reuse: Lowered

    @property
    def programs(self) -> tuple[Program, ...]:
        """Every segment, the head first."""
        return (self.head, *segments(self.compute), *segments(self.reuse))


Lowered = Program | Fork
"""What remains to be run of a step."""


def segments(lowered: Lowered) -> tuple[Program, ...]:
    """Every straight-line program of what was lowered."""
    return lowered.programs if isinstance(lowered, Fork) else (lowered,)


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph that shares the branch submodules."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(module.graph, values)
    node = graph.output(outputs)
    node.meta = dict(output_node(module.graph).meta)
    for copied in values.values():
        if "custom" in copied.meta:
            copied.meta["custom"] = dict(copied.meta["custom"])
    children = dict(module.named_children())
    return fx.GraphModule(children, graph, class_name="Program")


def drop_unused_branches(module: fx.GraphModule) -> None:
    """Forget the branches that no node of the graph refers to."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_children() if name not in used]:
        delattr(module, name)


def output_node(graph: fx.Graph) -> fx.Node:
    """The graph's output node."""
    found: fx.Node = next(n for n in reversed(graph.nodes) if n.op == "output")
    return found


def output_values(graph: fx.Graph) -> tuple[Any, ...]:
    """What the graph returns, flat."""
    values = output_node(graph).args[0]
    return tuple(values) if isinstance(values, (tuple, list)) else (values,)


def set_outputs(graph: fx.Graph, outputs: Outputs) -> None:
    """Make the graph return the given values."""
    parts = (outputs.results, outputs.stores, outputs.scores, outputs.lives)
    output_node(graph).args = (tuple(value for part in parts for value in part),)


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The graph's placeholders, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def fake_value(node: fx.Node) -> Any:
    """The fake value that capture recorded for a node."""
    return node.meta.get("val")


def static_type(node: fx.Node) -> TensorType | None:
    """The type of a node's tensor; None for what is no tensor of a known shape."""
    value = fake_value(node)
    if not isinstance(value, Tensor):
        return None
    known = all(isinstance(extent, int) for extent in value.shape)
    return TensorType.of(value) if known else None


def is_getitem(node: fx.Node) -> bool:
    """Whether the node takes one value out of a multi-output node."""
    return node.op == "call_function" and node.target is operator.getitem
