"""The compiled loop: every variant of one capture, compiled before the first step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from torch import nn

from graphcache.analysis.timestep import timestep_scale
from graphcache.backends.registry import Backend, Executable, get_backend
from graphcache.capture import Capture, OutputTree, Write
from graphcache.errors import BackendError
from graphcache.lowering import (
    Lowering,
    decided,
    interpreted,
    lower,
    static_decisions,
)
from graphcache.passes.join_guidance import PREDICATE as GUIDANCE
from graphcache.policy.decisions import Decision, Signature, Step
from graphcache.policy.diffusers import Configuration
from graphcache.policy.policy import Policy
from graphcache.policy.threshold import Threshold
from graphcache.program import Fork, Lowered, Program, Stage, TensorType, segments
from graphcache.rewriting import cached_program, policies_of, refuse_halves_in_turn
from graphcache.runtime.hoisted import HoistedDecision
from graphcache.runtime.loops import ReadValues
from graphcache.runtime.segment import Branching, Route, Segment
from graphcache.runtime.stats import Statistics
from graphcache.signature import Call


@dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        wanted: The policies, and what is said of guidance.
        backend: Compiles the programs.
        lowering: One of `graphcache.lowering.LOWERINGS`.
        options: The backend's options.
        progress: Whether to show a progress bar.
    """

    wanted: Configuration
    backend: Backend
    lowering: str
    options: Mapping[str, Any]
    progress: bool

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies, in order of precedence."""
        return self.wanted.policies

    def rewrite(self, module: nn.Module, call: Call, context: str | None) -> Capture:
        """Capture a module and rewrite it into what is lowered.

        Raises:
            CaptureError: If the module cannot be captured.
            PolicyError: If the policies match nothing.
        """
        return cached_program(module, call, self.wanted, context)


@dataclass(frozen=True)
class Loop:
    """One capture, compiled.

    Attributes:
        program: The cached program.
        routes: What to run, by the decisions of the host, in the order of `host`.
        policies: By name, those that the program obeys, in predicate order.
        host: Predicates that are decided before the step.
        decisions: The static decisions, by policy name.
        hoisted: The decisions that the timestep determines, by policy name.
        forced: For the decisions of the graph: when they are not asked.
        regions: Names of the gated regions, by policy name.
        enclosing: Per region of a policy, the other policies whose regions lie around
            it.
        arguments: The tensor arguments as captured, by path.
        device: Where the graph's numbers are made.
        output: What the module returns with ``return_dict=False``.
        named: What it returns with ``return_dict=True``.
        values: The arguments whose values were compiled in.
        writes: What the module writes to the containers that it is given.
    """

    program: Program
    routes: Mapping[Signature, Route]
    policies: tuple[Policy, ...]
    host: tuple[str, ...]
    decisions: Mapping[str, Decision]
    hoisted: Mapping[str, HoistedDecision]
    forced: Mapping[str, Decision]
    regions: Mapping[str, tuple[str, ...]]
    enclosing: Mapping[str, tuple[frozenset[str], ...]]
    arguments: Mapping[str, TensorType]
    device: torch.device
    output: OutputTree
    named: OutputTree
    values: ReadValues
    writes: tuple[Write, ...]

    def flags(self, step: Step, *, compute_all: bool) -> dict[str, bool]:
        """The host's decisions at a step, and which of the graph's are forced.

        Args:
            step: Where the loop is; everything is computed at its first step.
            compute_all: Compute everything, whatever the policies say.
        """
        every = compute_all or step.index == 0
        flags = {
            name: every or decision.computes(step)
            for name, decision in {**self.decisions, **self.forced}.items()
        }
        # The graph of the full batch computes everything.
        return dict.fromkeys(flags, True) if flags.get(GUIDANCE) else flags

    def route(self, flags: Mapping[str, bool]) -> Route:
        """What to run under the host's decisions."""
        return self.routes[tuple(flags[name] for name in self.host)]

    def computed(self, decisions: Mapping[str, bool]) -> dict[str, int]:
        """How many regions of each policy were computed.

        A region inside another policy's is not, if that one is reused.
        """
        return {
            name: sum(
                decisions[name] and all(decisions[other] for other in around)
                for around in self.enclosing[name]
            )
            for name in self.program.predicates
        }

    def check(self, step: Step, context: str | None) -> None:
        """Refuse a loop that a policy was not made for.

        Args:
            step: The first step.
            context: Name of the caller's context, if there is one.

        Raises:
            PolicyError: If a schedule is for another number of steps, or guidance in a
                batch is to be predicted and its halves are called in turn.
        """
        if GUIDANCE in self.program.predicates:
            refuse_halves_in_turn(context)
        for policy in self.policies:
            policy.decision.check(step.count)


def compile_loop(
    module: nn.Module,
    call: Call,
    target: Target,
    stats: Statistics,
    context: str | None = None,
) -> Loop:
    """Capture one call and compile every reachable variant of it.

    Args:
        module: The module, without what wraps its forward.
        call: The call to specialise on.
        target: What to compile for.
        stats: Where captures and graphs are counted.
        context: Name of the caller's context, if there is one.

    Raises:
        CaptureError: If the module cannot be captured.
        PolicyError: If the policies match nothing.
        BackendError: If the backend cannot compile a variant.
    """
    started = time.perf_counter()
    captured = target.rewrite(module, call, context)
    program = captured.program
    policies = policies_of(program, target.wanted)
    lowering = _lowered(program, policies, target)
    routes, hoisted = _compile(lowering, module, call, target, stats)
    stats.captures += 1
    stats.compile_seconds += time.perf_counter() - started
    regions = regions_by_policy(program)
    stats.regions = dict(regions)
    return Loop(
        program=program,
        routes=routes,
        policies=policies,
        host=lowering.host,
        decisions=static_decisions(policies),
        hoisted={
            policy.name: HoistedDecision(
                policy.name,
                hoisted[policy.name],
                policy.decision.forced,
                timestep_scale(program),
            )
            for policy in policies
            if isinstance(policy.decision, Threshold) and policy.name in hoisted
        },
        forced={
            policy.name: policy.decision.forced
            for policy in policies
            if isinstance(policy.decision, Threshold) and policy.name not in hoisted
        },
        regions=regions,
        enclosing=enclosing_policies(program),
        arguments={
            path: TensorType.of(tensor)
            for path, tensor in zip(call.paths, call.tensors, strict=True)
        },
        device=_device_of(module, call),
        output=captured.output,
        named=captured.named,
        values=ReadValues.of(call, captured.read),
        writes=captured.writes,
    )


def _device_of(module: nn.Module, call: Call) -> torch.device:
    weight = next(module.parameters(), None)
    if weight is not None:
        return weight.device
    return call.tensors[0].device if call.tensors else torch.device("cpu")


def regions_by_policy(program: Program) -> dict[str, tuple[str, ...]]:
    """Names of the gated regions of each policy, in graph order."""
    found: dict[str, tuple[str, ...]] = {}
    for gate in program.gates:
        found[gate.predicate] = (*found.get(gate.predicate, ()), gate.region)
    return found


def enclosing_policies(program: Program) -> dict[str, tuple[frozenset[str], ...]]:
    """Per policy and region of it, the policies whose regions lie around the region."""
    nodes = {
        gate.region: set(program.region(gate.region).nodes) for gate in program.gates
    }
    found: dict[str, tuple[frozenset[str], ...]] = {}
    for gate in program.gates:
        around = frozenset(
            other.predicate
            for other in program.gates
            if nodes[gate.region] < nodes[other.region]
            and other.predicate != gate.predicate
        )
        found[gate.predicate] = (*found.get(gate.predicate, ()), around)
    return found


def _compile(
    lowering: Lowering, module: nn.Module, call: Call, target: Target, stats: Statistics
) -> tuple[dict[Signature, Route], dict[str, Route]]:
    """Compile everything that a step may run; what is hoisted runs eager."""
    unique = {id(p): p for tree in lowering.routes.values() for p in segments(tree)}
    compiled: dict[int, Segment] = {}
    with _progress(target, len(unique)) as advance:
        for key, part in unique.items():
            run = advance(part)
            stats.graphs_compiled += 1
            compiled[key] = Segment.bind(part, run, module, call.paths)
    kept = {buffer for part in unique.values() for buffer in part.buffers}
    stats.planned_bytes = sum(buffer.type.bytes for buffer in kept)
    eager = get_backend("eager")
    small = {
        id(part): Segment.bind(part, eager.compile(part, {}), module, call.paths)
        for tree in lowering.hoisted.values()
        for part in segments(tree)
    }
    routes = {key: _route(tree, compiled) for key, tree in lowering.routes.items()}
    return routes, {name: _route(t, small) for name, t in lowering.hoisted.items()}


def _lowered(
    program: Program, policies: tuple[Policy, ...], target: Target
) -> Lowering:
    capabilities = target.backend.capabilities
    if program.stage is Stage.LOWERED:
        return decided(program)
    if capabilities.gates and target.lowering == "auto":
        return interpreted(program, policies)
    lowering = lower(program, policies, target.lowering)
    if lowering.choice.name == "conditional" and not capabilities.conditions:
        raise BackendError(
            f"backend {target.backend.name!r} takes no conditions: use "
            'lowering="auto", which makes straight lines'
        )
    return lowering


def _route(tree: Lowered, compiled: Mapping[int, Segment]) -> Route:
    if not isinstance(tree, Fork):
        return compiled[id(tree)]
    metric = tree.head.metric(tree.predicate)
    assert metric is not None
    return Branching(
        tree.predicate,
        metric.decision,
        compiled[id(tree.head)],
        _route(tree.compute, compiled),
        _route(tree.reuse, compiled),
    )


@contextmanager
def _progress(target: Target, total: int) -> Iterator[Any]:
    """A bar that moves as variants are compiled; yields the function that does it."""
    columns = (
        TextColumn("compiling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), disable=not target.progress)
    with bar:
        task = bar.add_task("", total=total)

        def compile_one(program: Program) -> Executable:
            run = target.backend.compile(program, target.options)
            bar.advance(task)
            return run

        yield compile_one
