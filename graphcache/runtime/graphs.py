"""Graphs of Dynamo's in the host loop.

All graphs that Dynamo makes of one module share a stepper, so that one clock sees every
call, whatever its shape. Their weights are inputs, which come with each call.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Collection, Mapping
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
from graphcache.runtime.clock import StepContext
from graphcache.runtime.compiling import CompiledLoop, Target, compile_loop
from graphcache.runtime.segment import Route, Segment
from graphcache.runtime.stepper import Stepper
from graphcache.runtime.thresholds import Thresholds, thresholds_of
from graphcache.runtime.weights import Weights
from graphcache.signature import Call, CallSignature, resolved


@dataclass(frozen=True)
class GraphTarget(Target):
    """A target whose source program is a graph of Dynamo's.

    Attributes:
        captured: The source program.
        traced: The call that Dynamo traced, with all of its arguments.
    """

    captured: Capture
    traced: Call

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


@dataclass(frozen=True)
class FlatWeights(Weights):
    """Weights among the inputs of a graph.

    Attributes:
        flat: The inputs of the call in progress.
        places: Which of them they are.
    """

    flat: list[Any]
    places: tuple[int, ...]

    def read(self) -> list[Tensor]:
        """The weights as this call gives them."""
        flat = self.flat
        return [flat[place] for place in self.places]


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
        if "diffusers" in sys.modules:
            # Modules of other libraries have no contexts to hear.
            contexts = importlib.import_module("graphcache.runtime.contexts")
            contexts.listen(module, self)

    def hear(self, context: StepContext | None) -> None:
        """A context of the module's is entered, or left."""
        self.clock.context = context

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
        captured = capture_graph(graph, frame, inputs)
        target = GraphTarget(**vars(self.target), captured=captured, traced=frame.call)
        module, context = uncompiled(frame.module), self.context_name
        loop = compile_loop(module, inputs.call, target, self.stats, context)
        return CompiledGraph(self, loop, inputs)

    def run_graph(self, call: GraphCall) -> Any:
        """One call of a graph."""
        try:
            return self.step(call)
        except BaseException:
            # Whatever was interrupted, no later call may read what it left behind.
            self.reset()
            raise

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
        self._flat: list[Any] = []
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
        self._flat[:] = values
        try:
            return self.stepper.run_graph(call)
        finally:
            self._flat.clear()


def _over(
    loop: CompiledLoop, flat: list[Any], places: Mapping[str, int]
) -> CompiledLoop:
    """The loop with its weights read from the inputs of a graph."""

    def over(route: Route) -> Route:
        if isinstance(route, Segment):
            inputs = route.interface.inputs
            names = [e.target for e in inputs if e.kind is InputKind.WEIGHT]
            found = tuple(places[name] for name in names)
            return replace(route, weights=FlatWeights((), (), (), flat, found))
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
