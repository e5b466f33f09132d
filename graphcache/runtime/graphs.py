"""Graphs of Dynamo's in the host loop.

All graphs that Dynamo makes of one module share a stepper, so that one clock sees every
call, whatever its shape. Their weights are inputs, which come with each call.
"""

from __future__ import annotations

import importlib
import sys
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from graphcache.capture import Capture
from graphcache.capture.dynamo import GraphInputs, capture_graph, uncompiled
from graphcache.capture.frame import TracedFrame
from graphcache.errors import BackendError
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import rewrite_pipeline
from graphcache.program import InputKind, Program, placeholders
from graphcache.quantised import Take
from graphcache.runtime.clock import StepContext
from graphcache.runtime.compiling import CompiledLoop, Target, compile_loop
from graphcache.runtime.segment import Route, Segment
from graphcache.runtime.stepper import Stepper
from graphcache.runtime.thresholds import Thresholds, thresholds_of
from graphcache.runtime.weights import Table, Weights
from graphcache.signature import Call, CallSignature, resolved


@dataclass(frozen=True)
class GraphTarget(Target):
    """A target whose source program is a graph of Dynamo's.

    Attributes:
        captured: The source program.
        traced: The call that Dynamo traced, with all of its arguments.
        held: What the module holds without having registered it.
    """

    captured: Capture
    traced: Call
    held: Mapping[str, Tensor]

    def weights(self, module: nn.Module) -> Table:
        """The module's weights, and what it holds besides."""
        return {**super().weights(module), **self.held}

    def rewrite(self, module: nn.Module, call: Call, context: str | None) -> Capture:
        """Rewrite the graph into what is lowered.

        A graph of Dynamo's is of one batch. Where one of half a batch is needed as
        well, to predict guidance, both are captured from the module.

        Raises:
            CaptureError: If the module cannot be captured.
            PolicyError: If the policies match nothing.
            BackendError: If both graphs do not fit Dynamo's.
        """
        if self.wanted.guidance is None:
            passes = rewrite_pipeline(self.policies)
            cached = run_passes(self.captured.program, passes, label="rewrite")
            return replace(self.captured, program=cached)
        joined = super().rewrite(module, self.traced, context)
        program = _without(joined.program, frozenset(call.paths))
        alike = joined.output.tensors == self.captured.output.tensors
        if program is None or joined.read or not alike:
            raise BackendError(
                "the graph of half a batch, which predicts guidance, does not take "
                "and give what Dynamo's graph does: use graphcache.compile"
            )
        return replace(self.captured, program=program)


def _without(program: Program, known: Collection[str]) -> Program | None:
    """The program without arguments that it does not read, or None if it reads them."""
    edited = program.copy()
    nodes = {node.name: node for node in placeholders(edited.graph)}
    kept = []
    for entry in edited.inputs:
        if entry.kind is not InputKind.ARGUMENT or entry.target in known:
            kept.append(entry)
        elif nodes[entry.name].users:
            return None
        else:
            edited.graph.erase_node(nodes[entry.name])
    return edited.evolve(inputs=tuple(kept))


@dataclass(frozen=True)
class GraphCall(Call):
    """A call of a graph.

    Attributes:
        loop: What the graph was compiled to.
    """

    loop: CompiledLoop


class _Here(threading.local):
    """What a stepper knows of the calling thread.

    Attributes:
        guessed: Whether the context of the call in progress is a guess.
    """

    guessed: bool = False


class Flat(threading.local):
    """The inputs of the call in progress; each thread has one."""

    values: Sequence[Any] = ()


class FlatWeights(Weights):
    """Weights among the inputs of a graph.

    Args:
        flat: The inputs of the call in progress.
        places: Which of them they are.
        inner: Of those within quantised weights, which they are and how they are read.
    """

    def __init__(
        self, flat: Flat, places: tuple[int, ...], inner: list[tuple[int, Take]]
    ) -> None:
        super().__init__((), {})
        self.flat = flat
        self.places = places
        self.inner = inner

    def read(self) -> list[Tensor]:
        """The weights as this call gives them."""
        flat = self.flat.values
        values = [flat[place] for place in self.places]
        for index, take in self.inner:
            values[index] = take(values[index])
        return values


class GraphStepper(Stepper):
    """Runs the graphs of one module under one policy.

    Args:
        module: The module. It is not kept alive.
        target: What to compile for.
        scheduler: Attached scheduler, or None.
        origin: What the target was made of; kept, so that its identity is not reused.

    Raises:
        PolicyError: If the scheduler has no timesteps.
    """

    def __init__(
        self, module: nn.Module, target: Target, scheduler: Any, origin: object
    ) -> None:
        super().__init__(
            CallSignature(module.forward),
            Thresholds(thresholds_of(target.policies)),
            scheduler,
            target.wanted.timestep_callback,
        )
        self.module = weakref.ref(module)
        self.target = target
        self.origin = origin
        self._here = _Here()
        self._deaf: set[int | None] = set()
        self._contexts: Any = None
        self._compiled: weakref.WeakValueDictionary[Any, CompiledGraph] = (
            weakref.WeakValueDictionary()
        )
        if "diffusers" in sys.modules:
            # Modules of other libraries have no contexts to hear.
            contexts = importlib.import_module("graphcache.runtime.contexts")
            # Threads that run already may be inside a context that nobody hears of.
            self._deaf = {thread.ident for thread in threading.enumerate()}
            self._contexts = contexts
            self._here.guessed = contexts.listen(module, self)

    def hear(self, context: StepContext | None) -> None:
        """The caller enters a context of the module's, or leaves it."""
        self._deaf.discard(threading.get_ident())
        self.clock.context = context

    def _listen_once(self) -> None:
        """Look for the context that this thread entered before it could be heard."""
        self._deaf.discard(threading.get_ident())
        module = self.module()
        if module is not None:
            self.clock.context = self._contexts.entered(module)
            self._here.guessed = True

    def compile(self, graph: fx.GraphModule, frame: TracedFrame) -> CompiledGraph:
        """Compile a graph of the module.

        Args:
            graph: What Dynamo made of a call.
            frame: The call.

        Raises:
            CaptureError: If the graph cannot be exported, or writes to its inputs.
            PolicyError: If the policies match nothing.
            BackendError: If an input is not known, or the backend cannot compile.
        """
        inputs = GraphInputs.of(graph.graph, frame)
        # Where two threads make the first call, Dynamo asks for one graph twice.
        key = _identity(graph, inputs)
        known = None if key is None else self._compiled.get(key)
        if known is not None:
            return known
        captured = capture_graph(graph, frame, inputs)
        target = GraphTarget(
            **vars(self.target),
            captured=captured,
            traced=frame.call,
            held=inputs.held,
        )
        module, context = uncompiled(frame.module), self.context_name
        loop = compile_loop(module, inputs.call, target, self.stats, context)
        compiled = CompiledGraph(self, loop, inputs)
        if key is not None:
            self._compiled[key] = compiled
        return compiled

    def run_graph(self, call: GraphCall) -> Any:
        """One call of a graph."""
        if threading.get_ident() in self._deaf:
            self._listen_once()
        try:
            return self.in_turn(lambda: self.step(call))
        finally:
            if self._here.guessed:
                # It may be the context of another thread.
                self._here.guessed = False
                self.clock.context = None

    def find(self, call: Call) -> CompiledLoop:
        """What the graph that is called was compiled to."""
        assert isinstance(call, GraphCall)
        return call.loop


class CompiledGraph:
    """What Dynamo calls in the place of a graph.

    Args:
        stepper: Runs the graph.
        loop: What the graph was compiled to.
        inputs: What it is called with.
    """

    def __init__(
        self, stepper: GraphStepper, loop: CompiledLoop, inputs: GraphInputs
    ) -> None:
        self.stepper = stepper
        self._flat = Flat()
        self._loop = _over(loop, self._flat, inputs.weights)
        call = inputs.call
        self._places = {path: inputs.arguments[path] for path in call.paths}
        self._paths = call.paths
        self._lazy = inputs.lazy
        self._key = call.key
        # The tensors of the call that was traced must not be kept.
        self._plain = {k: v for k, v in call.values.items() if k not in self._places}

    def __call__(self, *values: Any) -> Any:
        """One call, with the graph's inputs in their order."""
        if self._lazy:
            # Dynamo guards on what is noted on a tensor, so these are always the same.
            values = tuple(
                resolved(value) if place in self._lazy else value
                for place, value in enumerate(values)
            )
        tensors = {path: values[place] for path, place in self._places.items()}
        call = GraphCall(
            values={**self._plain, **tensors},
            tensors=list(tensors.values()),
            paths=self._paths,
            key=self._key,
            return_dict=None,
            loop=self._loop,
        )
        self._flat.values = values
        try:
            return self.stepper.run_graph(call)
        finally:
            self._flat.values = ()


def _place(target: str, places: Mapping[str, int]) -> int:
    """The place of the weight that a target names, or of the one that it is within."""
    while target not in places:
        target = target.rpartition(".")[0]
    return places[target]


def _identity(graph: fx.GraphModule, inputs: GraphInputs) -> tuple[Any, ...] | None:
    """What two graphs have in common that are one; None if it cannot be told."""
    if any(node.op in ("get_attr", "call_module") for node in graph.graph.nodes):
        return None
    places = (tuple(inputs.weights.items()), tuple(inputs.arguments.items()))
    return graph.code, inputs.call.key, tuple(inputs.call.paths), places


def _over(loop: CompiledLoop, flat: Flat, places: Mapping[str, int]) -> CompiledLoop:
    """The loop with its weights read from the inputs of a graph."""

    def over(route: Route) -> Route:
        if isinstance(route, Segment):
            inputs = route.interface.inputs
            names = [e.target for e in inputs if e.kind is InputKind.WEIGHT]
            found = tuple(_place(name, places) for name in names)
            weights = FlatWeights(flat, found, route.weights.takes)
            return replace(route, weights=weights)
        compute, reuse = over(route.compute), over(route.reuse)
        head = over(route.head)
        assert isinstance(head, Segment)
        return replace(route, head=head, compute=compute, reuse=reuse)

    return replace(
        loop,
        routes={key: over(route) for key, route in loop.routes.items()},
        hoisted={
            name: replace(hoisted, route=over(hoisted.route))
            for name, hoisted in loop.hoisted.items()
        },
    )
