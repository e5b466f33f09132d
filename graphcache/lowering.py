"""Lowering: from one cached program to the programs that a backend compiles.

===============  ==============================================================
``specialize``   decisions of the host are evaluated: one straight line for each
                 combination that they can reach
``split``        the same, cut where the graph takes a decision: head, one scalar
                 read by the host, one of two tails
``conditional``  gates become `torch.cond`: one graph with all branches
===============  ==============================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from graphcache.errors import BackendError
from graphcache.passes.hoist_decision import hoistable, indicator_program
from graphcache.passes.manager import Pass, run_passes
from graphcache.passes.match_layouts import declare_lives
from graphcache.passes.pipeline import (
    conditional_pipeline,
    specialize_pipeline,
    store_pipeline,
    tail_pipeline,
)
from graphcache.passes.split import head_of, lives_of, next_cut, tail_of
from graphcache.policy.decisions import Decision, Signature
from graphcache.policy.policy import Policy
from graphcache.policy.reachable import reachable_signatures
from graphcache.policy.threshold import Threshold
from graphcache.printer import format_program
from graphcache.program import (
    Fork,
    InputKind,
    Lowered,
    Program,
    fake_value,
    placeholders,
    segments,
)

LOWERINGS = ("auto", "specialize", "split", "conditional")


@dataclass(frozen=True)
class Choice:
    """A lowering and why it was chosen."""

    name: str
    reason: str


def choose_lowering(
    wanted: str, policies: Sequence[Policy], hoisted: Collection[str] = ()
) -> Choice:
    """The lowering for these policies.

    Args:
        wanted: One of `LOWERINGS`.
        policies: What the program obeys.
        hoisted: Names of those whose decisions the timestep alone determines.

    Raises:
        BackendError: If the lowering is unknown, or cannot lower these policies.
    """
    if wanted not in LOWERINGS:
        raise BackendError(f"unknown lowering {wanted!r}: know {', '.join(LOWERINGS)}")
    dynamic = [
        policy.name
        for policy in policies
        if isinstance(policy.decision, Threshold) and policy.name not in hoisted
    ]
    if wanted == "conditional":
        return Choice(wanted, "asked for: one graph, all branches, torch.cond")
    if dynamic and wanted == "specialize":
        raise BackendError(
            f"the graph itself decides about {', '.join(dynamic)}, so that no "
            'specialised graph can be chosen before the step: use lowering="split" '
            'or "conditional"'
        )
    if dynamic:
        reason = (
            f"the graph decides about {', '.join(dynamic)}: one scalar read by the "
            "host per decision, and both outcomes are straight lines"
        )
        return Choice("split", reason)
    reason = "every decision is known before the step: no branch and no host read"
    if hoisted:
        reason += f" ({', '.join(hoisted)}: the timestep alone determines it)"
    return Choice("specialize", reason)


def static_decisions(policies: Sequence[Policy]) -> dict[str, Decision]:
    """The decisions that are known on the host, by policy name, in order."""
    return {
        policy.name: policy.decision
        for policy in policies
        if not isinstance(policy.decision, Threshold)
    }


@dataclass(frozen=True)
class Lowering:
    """What a backend compiles, and what to run when.

    Attributes:
        choice: Which lowering it is, and why.
        host: Predicates that the host decides before the step: static ones, and those
            of the graph that the timestep alone determines. The order of signatures.
        hoisted: Of the latter, what works them out, by predicate.
        routes: What to run, by signature. Equal programs are one object.
    """

    choice: Choice
    host: tuple[str, ...]
    hoisted: Mapping[str, Lowered]
    routes: Mapping[Signature, Lowered]

    @property
    def planned_bytes(self) -> int:
        """Bytes of buffers that one stream needs."""
        parts = (part for tree in self.routes.values() for part in segments(tree))
        kept = {buffer for part in parts for buffer in part.buffers}
        return sum(buffer.type.bytes for buffer in kept)


def lower(
    program: Program, policies: Sequence[Policy], lowering: str = "auto"
) -> Lowering:
    """Lower a cached program for every combination of the host's decisions.

    Args:
        program: A cached program.
        policies: Those it obeys, in predicate order.
        lowering: One of `LOWERINGS`.

    Raises:
        BackendError: If the lowering is unknown, or cannot lower these policies.
    """
    early = () if lowering == "conditional" else hoistable(program)
    choice = choose_lowering(lowering, policies, early)
    decisions = static_decisions(policies)
    host = tuple(p for p in program.predicates if p in decisions or p in early)
    signatures = _signatures(decisions, host)
    if choice.name == "conditional":
        whole = run_passes(program, conditional_pipeline(), label="conditional")
        return Lowering(choice, host, {}, dict.fromkeys(signatures, whole))
    hoisted = {
        name: _split(indicator_program(program, name), f"hoist {name}")
        for name in early
    }
    lowered = {
        signature: _specialize(program, dict(zip(host, signature, strict=True)))
        for signature in signatures
    }
    read = frozenset(_read(lowered.values()))
    last = store_pipeline(read, _layouts(program))
    routes = _shared({key: _store(tree, last) for key, tree in lowered.items()})
    return Lowering(choice, host, hoisted, routes)


def interpreted(program: Program, policies: Sequence[Policy]) -> Lowering:
    """The cached program itself, for a backend that takes gates."""
    decisions = static_decisions(policies)
    host = tuple(p for p in program.predicates if p in decisions)
    choice = Choice("gates", "the backend takes gates as they are")
    signatures = _signatures(decisions, host)
    return Lowering(choice, host, {}, dict.fromkeys(signatures, program))


def decided(program: Program) -> Lowering:
    """A program in which nothing is left to decide, such as one that is observed."""
    choice = Choice("none", "nothing is decided: one straight line")
    return Lowering(choice, (), {}, {(): program})


def _signatures(
    decisions: Mapping[str, Decision], host: Sequence[str]
) -> list[Signature]:
    """Every combination that the host can decide, the all-compute one first."""
    others = [name for name in host if name not in decisions]
    found = []
    for early in product((True, False), repeat=len(others)):
        for static in reachable_signatures(decisions):
            said = dict(zip(decisions, static, strict=True))
            said |= dict(zip(others, early, strict=True))
            found.append(tuple(said[name] for name in host))
    return found


def _specialize(program: Program, chosen: Mapping[str, bool]) -> Lowered:
    partial = tuple(chosen.get(name) for name in program.predicates)
    label = f"specialize {signature_name(tuple(chosen), tuple(chosen.values()))}"
    return _split(run_passes(program, specialize_pipeline(partial), label=label), label)


def _split(program: Program, label: str) -> Lowered:
    cut = next_cut(program)
    if cut is None:
        return program
    tail = tail_of(program, cut)
    sides = []
    for computes in (True, False):
        partial = tuple(
            computes if name == cut.predicate else None for name in tail.predicates
        )
        name = f"{label} {signature_name((cut.predicate,), (computes,))}"
        side = run_passes(tail, tail_pipeline(partial), label=name)
        sides.append(_split(side, name))
    lives = [
        name
        for side in sides
        for part in segments(side)
        for name in lives_of(part, cut)
    ]
    head = head_of(program, cut, lives)
    head = run_passes(head, tail_pipeline(()), label=f"{label} {cut.predicate}=head")
    declare_lives(head, [part for side in sides for part in segments(side)])
    return Fork(cut.predicate, head, *sides)


def _read(lowered: Iterable[Lowered]) -> Iterator[str]:
    for tree in lowered:
        for program in segments(tree):
            for entry in program.inputs_of(InputKind.BUFFER):
                yield entry.target


def _layouts(program: Program) -> dict[str, Any]:
    """How each buffer lies in memory, by name."""
    nodes = {node.name: node for node in placeholders(program.graph)}
    buffers = program.inputs_of(InputKind.BUFFER)
    return {entry.target: fake_value(nodes[entry.name]) for entry in buffers}


def _store(tree: Lowered, last: Sequence[Pass]) -> Lowered:
    if isinstance(tree, Fork):
        return replace(
            tree,
            head=run_passes(tree.head, last, label="stores head"),
            compute=_store(tree.compute, last),
            reuse=_store(tree.reuse, last),
        )
    return run_passes(tree, last, label="stores")


def _shared(lowered: Mapping[Signature, Lowered]) -> dict[Signature, Lowered]:
    """Equal programs as one object: what lies in an unused region does not matter."""
    known: dict[str, Program] = {}

    def share(tree: Lowered) -> Lowered:
        if isinstance(tree, Fork):
            head = share(tree.head)
            assert isinstance(head, Program)
            return Fork(tree.predicate, head, share(tree.compute), share(tree.reuse))
        return known.setdefault(format_program(tree), tree)

    return {signature: share(tree) for signature, tree in lowered.items()}


def signature_name(predicates: Sequence[str], signature: Signature) -> str:
    """Text for a signature: ``spatial=reuse temporal=compute``."""
    return " ".join(
        f"{name}={'compute' if computes else 'reuse'}"
        for name, computes in zip(predicates, signature, strict=True)
    )
