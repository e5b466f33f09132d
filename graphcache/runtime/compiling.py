"""Compiling: from a module and one call of it to a loop, before the first step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.analysis.timestep import timestep_scale
from graphcache.backends.registry import Backend, Executable, get_backend
from graphcache.capture import Capture
from graphcache.errors import BackendError
from graphcache.locking import compiling
from graphcache.lowering import (
    Lowering,
    decided,
    interpreted,
    lower,
    static_decisions,
)
from graphcache.policy.decisions import Signature
from graphcache.policy.diffusers import Configuration
from graphcache.policy.policy import Policy
from graphcache.policy.threshold import Threshold
from graphcache.program import (
    Fork,
    InputKind,
    Lowered,
    Program,
    Stage,
    TensorType,
    fake_value,
    placeholders,
    segments,
)
from graphcache.rewriting import cached_program, policies_of
from graphcache.runtime.bar import progress_bar
from graphcache.runtime.hoisted import HoistedDecision
from graphcache.runtime.loop import Loop
from graphcache.runtime.loops import ReadValues
from graphcache.runtime.segment import Branching, Interface, Route, Segment
from graphcache.runtime.stats import Statistics
from graphcache.runtime.weights import Table, Weights, weights_of
from graphcache.signature import Call, with_tensors


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

    def weights(self, module: nn.Module) -> Table:
        """What a program may take, by the targets of its inputs."""
        return weights_of(module)


@dataclass(frozen=True)
class CompiledLoop(Loop):
    """A loop and what it was compiled from.

    Attributes:
        source: The cached program, and what it is good for.
        policies: Those that the program obeys, in predicate order.
        form: The arguments of the call, with tensors that hold no data.
    """

    source: Capture
    policies: tuple[Policy, ...]
    form: Mapping[str, Any]


def compile_loop(
    module: nn.Module,
    call: Call,
    target: Target,
    stats: Statistics,
    context: str | None = None,
) -> CompiledLoop:
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
    with compiling():
        captured = target.rewrite(module, call, context)
        program = captured.program
        policies = policies_of(program, target.wanted)
        lowering = _lowered(program, policies, target)
        routes, hoisted = _compile(lowering, module, call, target, stats)
    stats.captures += 1
    stats.compile_seconds += time.perf_counter() - started
    stats.regions = dict(regions_by_policy(program))
    return compiled_loop(captured, policies, lowering, call, routes, hoisted)


def compiled_loop(
    captured: Capture,
    policies: tuple[Policy, ...],
    lowering: Lowering,
    call: Call,
    routes: Mapping[Signature, Route],
    hoisted: Mapping[str, Route],
) -> CompiledLoop:
    """The loop of one capture.

    Args:
        captured: The cached program and what it is good for.
        policies: Those that it obeys.
        lowering: What it was lowered to.
        call: The call that was captured.
        routes: What `lowering.routes` was compiled to.
        hoisted: What `lowering.hoisted` was compiled to.
    """
    program, scale = captured.program, timestep_scale(captured.program)
    dynamic = {
        policy.name: policy.decision
        for policy in policies
        if isinstance(policy.decision, Threshold)
    }
    return CompiledLoop(
        source=captured,
        policies=policies,
        form=with_tensors(call, [_like(tensor) for tensor in call.tensors]),
        predicates=program.predicates,
        routes=routes,
        host=lowering.host,
        decisions=static_decisions(policies),
        hoisted={
            name: HoistedDecision(
                name, hoisted[name], decision.forced, decision.rule, scale
            )
            for name, decision in dynamic.items()
            if name in hoisted
        },
        forced={
            name: decision.forced
            for name, decision in dynamic.items()
            if name not in hoisted
        },
        rules={name: decision.rule for name, decision in dynamic.items()},
        regions=regions_by_policy(program),
        enclosing=enclosing_policies(program),
        arguments={
            path: TensorType.of(tensor)
            for path, tensor in zip(call.paths, call.tensors, strict=True)
        },
        device=_device_of(program, call),
        scale=scale,
        output=captured.output,
        named=captured.named,
        values=ReadValues.of(call, captured.read),
        writes=captured.writes,
    )


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
    )


def _device_of(program: Program, call: Call) -> torch.device:
    """Where the weights are, or the arguments of a module that has none."""
    kinds = {entry.name: entry.kind for entry in program.inputs}
    for node in placeholders(program.graph):
        if kinds[node.name] is InputKind.WEIGHT:
            device: torch.device = fake_value(node).device
            return device
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
    table = target.weights(module)
    compiled: dict[int, Segment] = {}
    with progress_bar("compiling", len(unique), shown=target.progress) as advance:
        for key, part in unique.items():
            run = target.backend.compile(part, target.options)
            stats.graphs_compiled += 1
            advance()
            compiled[key] = _bound(part, run, table, call)
    stats.planned_bytes = lowering.planned_bytes
    eager = get_backend("eager")
    small = {
        id(part): _bound(part, eager.compile(part, {}), table, call)
        for tree in lowering.hoisted.values()
        for part in segments(tree)
    }
    routes = {key: _route(tree, compiled) for key, tree in lowering.routes.items()}
    return routes, {name: _route(t, small) for name, t in lowering.hoisted.items()}


def _bound(program: Program, run: Executable, table: Table, call: Call) -> Segment:
    weights = Weights.of(program.inputs, table)
    interface = Interface.of(program)
    return Segment.bind(interface, run, weights, program.constants, call.paths)


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
    return Branching(
        tree.predicate,
        compiled[id(tree.head)],
        _route(tree.compute, compiled),
        _route(tree.reuse, compiled),
    )
