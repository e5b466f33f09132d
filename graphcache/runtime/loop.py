"""The compiled loop: every variant of one capture, compiled before the first step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from torch import nn
from torch.utils import _pytree as pytree

from graphcache.backends.registry import Backend, Executable
from graphcache.capture import capture
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import (
    rewrite_pipeline,
    specialize_pipeline,
    store_pipeline,
)
from graphcache.policy.decisions import Signature, Step, reachable_signatures
from graphcache.policy.policy import Policy
from graphcache.program import InputKind, Program, TensorType
from graphcache.runtime.stats import Statistics
from graphcache.runtime.variants import Variant
from graphcache.signature import Call


@dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        policies: The policies, in order of precedence.
        backend: Compiles the programs.
        options: The backend's options.
        progress: Whether to show a progress bar.
    """

    policies: tuple[Policy, ...]
    backend: Backend
    options: Mapping[str, Any]
    progress: bool


@dataclass(frozen=True)
class Loop:
    """One capture, compiled.

    Attributes:
        program: The cached program.
        variants: One executable per reachable signature.
        policies: By name, those that the program obeys, in predicate order.
        regions: Names of the gated regions, by policy name.
        arguments: The tensor arguments as captured, by path.
        output: Tree of the results with ``return_dict=False``.
    """

    program: Program
    variants: Mapping[Signature, Variant]
    policies: tuple[Policy, ...]
    regions: Mapping[str, tuple[str, ...]]
    arguments: Mapping[str, TensorType]
    output: pytree.TreeSpec

    def decide(self, step: Step) -> Signature:
        """The decisions at one step; everything is computed at the first."""
        if step.index == 0:
            return (True,) * len(self.policies)
        return tuple(policy.decision.computes(step) for policy in self.policies)


def compile_loop(
    module: nn.Module, call: Call, target: Target, stats: Statistics
) -> Loop:
    """Capture one call and compile every reachable variant of it.

    Raises:
        CaptureError: If the module cannot be captured.
        PolicyError: If the policies match nothing.
        BackendError: If the backend cannot compile a variant.
    """
    started = time.perf_counter()
    captured = capture(module, call)
    program = run_passes(
        captured.program, rewrite_pipeline(target.policies), label="rewrite"
    )
    policies = _policies_of(program, target.policies)
    variants = _compile_variants(module, call, program, policies, target, stats)
    stats.captures += 1
    stats.compile_seconds += time.perf_counter() - started
    kept = {buffer for v in variants.values() for buffer in v.program.buffers}
    stats.planned_bytes = sum(buffer.type.bytes for buffer in kept)
    regions = regions_by_policy(program)
    stats.regions = dict(regions)
    arguments = {
        path: TensorType.of(tensor)
        for path, tensor in zip(call.paths, call.tensors, strict=True)
    }
    return Loop(program, variants, policies, regions, arguments, captured.output)


def regions_by_policy(program: Program) -> dict[str, tuple[str, ...]]:
    """Names of the gated regions of each policy, in graph order."""
    found: dict[str, tuple[str, ...]] = {}
    for gate in program.gates:
        found[gate.predicate] = (*found.get(gate.predicate, ()), gate.region)
    return found


def lower(program: Program, policies: tuple[Policy, ...]) -> dict[Signature, Program]:
    """A straight-line program for every signature the policies can reach.

    Args:
        program: A cached program.
        policies: Those it obeys, in predicate order.
    """
    decisions = {policy.name: policy.decision for policy in policies}
    lowered = {
        signature: run_passes(
            program,
            specialize_pipeline(signature),
            label=f"specialize {signature_name(program.predicates, signature)}",
        )
        for signature in reachable_signatures(decisions)
    }
    read = frozenset(
        entry.target
        for variant in lowered.values()
        for entry in variant.inputs_of(InputKind.BUFFER)
    )
    return {
        signature: run_passes(
            variant,
            store_pipeline(read),
            label=f"stores {signature_name(program.predicates, signature)}",
        )
        for signature, variant in lowered.items()
    }


def signature_name(predicates: tuple[str, ...], signature: Signature) -> str:
    """Text for a signature: ``spatial=reuse temporal=compute``."""
    return " ".join(
        f"{name}={'compute' if computes else 'reuse'}"
        for name, computes in zip(predicates, signature, strict=True)
    )


def _policies_of(program: Program, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    by_name = {policy.name: policy for policy in policies}
    return tuple(by_name[name] for name in program.predicates)


def _compile_variants(
    module: nn.Module,
    call: Call,
    program: Program,
    policies: tuple[Policy, ...],
    target: Target,
    stats: Statistics,
) -> dict[Signature, Variant]:
    decisions = {policy.name: policy.decision for policy in policies}
    signatures = reachable_signatures(decisions)
    if target.backend.capabilities.gates:
        run = target.backend.compile(program, target.options)
        stats.graphs_compiled += 1
        return {
            signature: Variant.bind(program, run, signature, module, call.paths)
            for signature in signatures
        }
    lowered = lower(program, policies)
    variants = {}
    with _progress(target, len(lowered)) as advance:
        for signature, variant in lowered.items():
            run = advance(variant, signature_name(program.predicates, signature))
            stats.graphs_compiled += 1
            variants[signature] = Variant.bind(
                variant, run, signature, module, call.paths
            )
    return variants


@contextmanager
def _progress(target: Target, total: int) -> Iterator[Any]:
    """A bar that moves as variants are compiled; yields the function that does it."""
    columns = (
        TextColumn("compiling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), disable=not target.progress)
    with bar:
        task = bar.add_task("", total=total)

        def compile_one(program: Program, name: str) -> Executable:
            bar.update(task, description=name)
            run = target.backend.compile(program, target.options)
            bar.advance(task)
            return run

        yield compile_one
