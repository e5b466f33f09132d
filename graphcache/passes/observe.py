"""observe: give out what is measured of a step, next to the module's results.

Nothing is cached. Every observed value goes through a small traced function that
compares it with those of earlier steps, which are held in buffers; what it measures is
handed over with the results. Calibration runs such a program through a generation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, fx

from graphcache.analysis.view import Analysis
from graphcache.errors import PolicyError
from graphcache.passes.branches import (
    buffer_like,
    compact,
    inline,
    pinned,
    storage_key,
)
from graphcache.passes.gate_rewriter import insert_input, last_of
from graphcache.passes.manager import PassResult
from graphcache.passes.specialize import protect_results
from graphcache.passes.tracing import trace
from graphcache.program import (
    Buffer,
    Input,
    InputKind,
    Outputs,
    Program,
    Stage,
    TensorType,
    fake_value,
    placeholders,
    set_outputs,
    static_type,
)

Tensors = Sequence[Tensor]


class Observation(Protocol):
    """What is measured of every step; `initial` and `measure` are traced and pure."""

    def groups(self, analysis: Analysis) -> Mapping[str, tuple[fx.Node, ...]]:
        """The values that are measured together, by the name of the measurement.

        Raises:
            PolicyError: If the graph has none; the message says what was missing.
        """
        ...

    def initial(self, observed: Tensors) -> Tensors:
        """Example buffers of one group, for their shapes and dtypes.

        The buffers start as zeros.
        """
        ...

    def measure(self, observed: Tensors, buffers: Tensors) -> tuple[Tensor, Tensors]:
        """What is measured of one group, and its buffers after the step.

        As long as the stream has had fewer steps than the buffers remember, they hold
        zeros, and what is measured of those is not asked.
        """
        ...


@dataclass
class _Rewriter:
    """Measures the groups of one program, one at a time."""

    program: Program
    observation: Observation

    def __post_init__(self) -> None:
        self.inputs = list(self.program.inputs)
        self.measured: dict[str, fx.Node] = {}
        self.buffers: list[Buffer] = []
        self.stores: list[fx.Node] = []
        # A value of the caller's must be copied to be remembered.
        self.foreign = {
            storage_key(value)
            for value in map(fake_value, placeholders(self.program.graph))
            if isinstance(value, Tensor)
        }

    def add(self, name: str, observed: Sequence[fx.Node]) -> None:
        """Measure one group."""
        graph = self.program.graph
        _refuse_unknown_sizes(name, observed)
        fakes = [fake_value(node) for node in observed]
        with fakes[0].fake_mode:
            initial = list(self.observation.initial(fakes))
        held = self._add_buffers(name, initial)
        traced = trace(self._flat, fakes, [fake_value(node) for node in held])
        anchor = last_of(graph, [*observed, *held])
        with graph.inserting_before(anchor.next):
            measured, *values = inline(traced, graph, [*observed, *held])
            self.stores.extend(compact(graph, values, self.foreign))
        self.measured[name] = measured

    def _flat(self, observed: Any, buffers: Any) -> list[Tensor]:
        measured, values = self.observation.measure(observed, buffers)
        return [measured, *values]

    def _add_buffers(self, name: str, values: Sequence[Tensor]) -> list[fx.Node]:
        nodes = []
        for index, (value, copied) in enumerate(
            zip(values, pinned(values), strict=True)
        ):
            buffer = Buffer(f"{name}.{index}", TensorType.of(value))
            node = insert_input(
                self.program.graph,
                "cache_" + re.sub(r"\W", "_", buffer.name),
                buffer_like(value, contiguous=copied),
            )
            self.inputs.append(Input(node.name, InputKind.BUFFER, buffer.name))
            self.buffers.append(buffer)
            nodes.append(node)
        return nodes

    def finish(self) -> Program:
        """The program with everything that was measured."""
        graph, results = self.program.graph, self.program.outputs.results
        measured = tuple(self.measured.values())
        set_outputs(graph, Outputs(results, tuple(self.stores), (), measured))
        observed = self.program.evolve(
            stage=Stage.LOWERED,
            inputs=tuple(self.inputs),
            stores=tuple(buffer.name for buffer in self.buffers),
            buffers=tuple(self.buffers),
            lives=tuple(self.measured),
        )
        protect_results(observed)
        graph.lint()
        observed.module.recompile()
        return observed


def _refuse_unknown_sizes(name: str, nodes: Sequence[fx.Node]) -> None:
    for node in nodes:
        if static_type(node) is None:
            raise PolicyError(
                f"{name} cannot be measured: the size of {node.name} depends on data"
            )


@dataclass(frozen=True)
class Observe:
    """Measure a program, and cache nothing.

    Args:
        observation: What is measured.
    """

    observation: Observation
    name: ClassVar[str] = "observe"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE, Stage.LOWERED)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per measurement. A lowered program is left alone."""
        if program.stage is Stage.LOWERED:
            return PassResult(program, 0)
        rewriter = _Rewriter(program.copy(), self.observation)
        groups = self.observation.groups(Analysis(rewriter.program))
        for name, observed in groups.items():
            rewriter.add(name, observed)
        return PassResult(rewriter.finish(), len(groups))
