"""Segments: compiled programs, how their inputs are bound, and which follows which.

A step is one segment, or a head that gives a score and the segment that follows the
decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphcache.backends.registry import Executable
from graphcache.policy.decisions import Step
from graphcache.policy.scalars import Scalar
from graphcache.policy.threshold import Comparison
from graphcache.program import Buffer, Input, InputKind, Program
from graphcache.runtime.streams import Stream
from graphcache.runtime.weights import Weights

_BOOLS = {True: torch.tensor(True), False: torch.tensor(False)}


@dataclass
class Frame:
    """One step in progress.

    Attributes:
        tensors: The flat tensor arguments of the call.
        stream: Its buffers are read, and replaced when the step is done.
        step: Where the loop is.
        flags: By predicate: the decision; for one of the graph, whether it is forced.
        thresholds: By predicate.
        rules: By predicate: how a score is compared with its threshold.
        device: Where numbers for the graph are made.
        decisions: By predicate, what was decided by the graph's scores.
        scores: By predicate, the scores that were read.
        lives: What heads have handed over.
        stored: New values of buffers.
    """

    tensors: Sequence[Tensor]
    stream: Stream
    step: Step
    flags: Mapping[str, bool]
    thresholds: Mapping[str, float]
    rules: Mapping[str, Comparison]
    device: torch.device
    decisions: dict[str, bool] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    lives: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)

    def number(self, value: float) -> Tensor:
        """A number for the graph: ``f64[]``."""
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def decide(self, predicate: str, score: Tensor) -> bool:
        """Take a decision; the score is read by the host unless it is forced."""
        if self.flags[predicate]:
            computes = True
        else:
            value = float(score)
            self.scores[predicate] = value
            rule = self.rules[predicate]
            computes = rule.computes(value, self.thresholds[predicate])
        self.decisions[predicate] = computes
        return computes


@dataclass(frozen=True)
class Interface:
    """What a compiled program takes and gives: all that the runtime knows of it.

    Attributes:
        inputs: One entry per input, in order.
        results: How many leading outputs belong to the caller.
        stores: Names of the buffers that the outputs after the results replace.
        scores: Predicates whose scores are the outputs after the stores.
        lives: Names of the values handed to later segments: the last outputs.
        buffers: The buffers among its inputs and stores.
        scalars: The numbers among its inputs.
    """

    inputs: tuple[Input, ...]
    results: int
    stores: tuple[str, ...]
    scores: tuple[str, ...]
    lives: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    scalars: tuple[Scalar, ...]

    @staticmethod
    def of(program: Program) -> Interface:
        """The interface of a program."""
        read = set(_targets(program.inputs, InputKind.SCALAR))
        touched = {*_targets(program.inputs, InputKind.BUFFER), *program.stores}
        return Interface(
            inputs=program.inputs,
            results=program.results,
            stores=program.stores,
            scores=program.scores,
            lives=program.lives,
            buffers=tuple(b for b in program.buffers if b.name in touched),
            scalars=tuple(s for s in program.scalars if s.name in read),
        )


def _targets(inputs: Sequence[Input], kind: InputKind) -> tuple[str, ...]:
    return tuple(entry.target for entry in inputs if entry.kind is kind)


@dataclass(frozen=True)
class Segment:
    """An executable and the binding of its inputs, in kind order.

    Attributes:
        interface: What it takes and gives.
        run: The compiled function.
        weights: Bound first.
        fixed: Constants, bound next.
        arguments: Which flat call arguments are bound next.
        flags: Predicates of the decisions bound next.
        thresholds: Predicates of the thresholds bound next.
        scalars: Scalars bound next.
        reads: Buffers bound next.
        lives: Values of earlier segments, bound last.
        order: Where in that order each input of the program is; None if it is the
            program's own.
    """

    interface: Interface
    run: Executable
    weights: Weights
    fixed: tuple[Tensor, ...]
    arguments: tuple[int, ...]
    flags: tuple[str, ...]
    thresholds: tuple[str, ...]
    scalars: tuple[Scalar, ...]
    reads: tuple[Buffer, ...]
    lives: tuple[str, ...]
    order: tuple[int, ...] | None

    @staticmethod
    def bind(
        interface: Interface,
        run: Executable,
        weights: Weights,
        constants: Mapping[str, Tensor],
        paths: Sequence[str],
    ) -> Segment:
        """Bind the inputs of a compiled program.

        Args:
            interface: What it takes and gives.
            run: The compiled function.
            weights: Those that the inputs name, in their order.
            constants: By target, at least those that the inputs name.
            paths: Path of every flat tensor argument of the call.
        """
        types = {buffer.name: buffer for buffer in interface.buffers}
        scalars = {scalar.name: scalar for scalar in interface.scalars}

        def targets(kind: InputKind) -> tuple[str, ...]:
            return _targets(interface.inputs, kind)

        return Segment(
            interface=interface,
            run=run,
            weights=weights,
            fixed=tuple(constants[t] for t in targets(InputKind.CONSTANT)),
            arguments=tuple(paths.index(t) for t in targets(InputKind.ARGUMENT)),
            flags=targets(InputKind.DECISION),
            thresholds=targets(InputKind.THRESHOLD),
            scalars=tuple(scalars[t] for t in targets(InputKind.SCALAR)),
            reads=tuple(types[t] for t in targets(InputKind.BUFFER)),
            lives=targets(InputKind.LIVE),
            order=_order([entry.kind for entry in interface.inputs]),
        )

    def __call__(self, frame: Frame, *, last: bool) -> tuple[Sequence[Tensor], ...]:
        """Run the segment; returns its results and its scores.

        Args:
            frame: The step.
            last: Whether no segment of the step follows. Buffers that are about to be
                replaced are freed then, so that one set of them is alive.
        """
        gives = self.interface
        values: list[Any] = [
            *self.weights.read(),
            *self.fixed,
            *[frame.tensors[index] for index in self.arguments],
            *[_BOOLS[frame.flags[name]] for name in self.flags],
            *[frame.number(frame.thresholds[name]) for name in self.thresholds],
            *[frame.number(scalar.of(frame.step)) for scalar in self.scalars],
            *frame.stream.read(self.reads),
            *[frame.lives[name] for name in self.lives],
        ]
        if self.order is not None:
            values = [values[index] for index in self.order]
        if last:
            frame.lives.clear()
            frame.stream.release((*frame.stored, *gives.stores))
        outputs = self.run(values)
        stores = gives.results + len(gives.stores)
        scores = stores + len(gives.scores)
        frame.stored.update(
            zip(gives.stores, outputs[gives.results : stores], strict=True)
        )
        frame.lives.update(zip(gives.lives, outputs[scores:], strict=True))
        if last:
            frame.stream.buffers.update(frame.stored)
        return outputs[: gives.results], outputs[stores:scores]


_BINDING = (
    InputKind.WEIGHT,
    InputKind.CONSTANT,
    InputKind.ARGUMENT,
    InputKind.DECISION,
    InputKind.THRESHOLD,
    InputKind.SCALAR,
    InputKind.BUFFER,
    InputKind.LIVE,
)


def _order(kinds: Sequence[InputKind]) -> tuple[int, ...] | None:
    """Where each input is among those bound kind by kind; None if they are in order."""
    bound = sorted(range(len(kinds)), key=lambda i: _BINDING.index(kinds[i]))
    if bound == list(range(len(kinds))):
        return None
    places = {index: place for place, index in enumerate(bound)}
    return tuple(places[index] for index in range(len(kinds)))


@dataclass(frozen=True)
class Branching:
    """A head, and what follows its decision.

    Attributes:
        predicate: The decision.
        head: Gives the score.
        compute: What follows if the regions are computed.
        reuse: What follows if they are not.
    """

    predicate: str
    head: Segment
    compute: Route
    reuse: Route


Route = Segment | Branching


def run_route(route: Route, frame: Frame) -> list[Tensor]:
    """Run one step; returns the module's results."""
    while isinstance(route, Branching):
        _, (score,) = route.head(frame, last=False)
        computes = frame.decide(route.predicate, score)
        route = route.compute if computes else route.reuse
    results, scores = route(frame, last=True)
    for predicate, score in zip(route.interface.scores, scores, strict=True):
        frame.decide(predicate, score)
    return list(results)


def segments_of(route: Route) -> tuple[Segment, ...]:
    """Every segment that a step may run, the heads first."""
    if isinstance(route, Segment):
        return (route,)
    return (route.head, *segments_of(route.compute), *segments_of(route.reuse))
