"""plan-gates: the policies tag regions, and nothing is rewritten yet.

The tags are the whole plan: later passes read `Program.gates` and `Program.metrics` and
never a policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, fx

from graphcache.analysis.dataflow import ancestors, operands_of, with_items
from graphcache.analysis.residual import pair
from graphcache.analysis.view import Analysis
from graphcache.errors import PolicyError
from graphcache.passes.manager import PassResult
from graphcache.passes.tracing import check_measure, check_predict
from graphcache.policy.policy import Policy
from graphcache.policy.scalars import Scalar
from graphcache.policy.threshold import Threshold
from graphcache.program import (
    Buffer,
    Gate,
    Metric,
    Program,
    Region,
    Stage,
    TensorType,
    fake_value,
)


@dataclass(frozen=True)
class Choice:
    """A region and the policy that takes it."""

    region: Region
    policy: Policy


@dataclass
class Assignment:
    """Which policy takes which region, and why the others do not.

    Attributes:
        chosen: What was taken, in order of precedence.
        refused: Per policy name, what was looked at and why it was not taken.
    """

    chosen: list[Choice] = field(default_factory=list)
    refused: dict[str, list[tuple[Region, str]]] = field(default_factory=dict)

    def consider(self, region: Region, policy: Policy) -> None:
        """Take a region for a policy, or note why not.

        Raises:
            PolicyError: If it overlaps one taken before without lying inside it or
                around it.
        """
        reason = policy.regions.reject(region) or self._taken(region, policy)
        if reason is None:
            self.chosen.append(Choice(region, policy))
        else:
            self.refused[policy.name].append((region, reason))

    def _taken(self, region: Region, policy: Policy) -> str | None:
        nodes = set(region.nodes)
        for other in self.chosen:
            taken = set(other.region.nodes)
            if nodes == taken:
                return f"taken by {other.policy.name}"
            if nodes & taken and not (nodes < taken or taken < nodes):
                raise PolicyError(
                    f"policies {other.policy.name} and {policy.name} overlap: "
                    f"{other.region.name} and {region.name} share "
                    f"{len(nodes & taken)} operations, and neither lies inside the "
                    "other. Narrow the regions of one of them."
                )
        return None


def assign(analysis: Analysis, policies: Sequence[Policy]) -> list[Choice]:
    """Give each region to the first policy that takes it.

    Raises:
        PolicyError: If a required policy, or every policy, matches nothing; the
            message lists what there was to match and why it was not.
    """
    found = Assignment()
    for policy in policies:
        found.refused[policy.name] = []
        for region in policy.regions.candidates(analysis):
            found.consider(region, policy)
    used = {choice.policy.name for choice in found.chosen}
    idle = [policy for policy in policies if policy.name not in used]
    if any(policy.required for policy in idle) or not found.chosen:
        raise PolicyError(describe_mismatch(idle, found))
    return found.chosen


def describe_mismatch(idle: Sequence[Policy], found: Assignment) -> str:
    """What the idle policies could have matched, and why each region was refused."""
    names = ", ".join(policy.name for policy in idle)
    nouns = " or ".join(dict.fromkeys(policy.regions.noun for policy in idle))
    reasons: dict[str, list[str]] = {}
    for policy in idle:
        for region, reason in found.refused[policy.name]:
            shown = f"{region.name} ({region.flow})" if region.flow else region.name
            reasons.setdefault(shown, []).append(f"{policy.name}: {reason}")
    if not reasons:
        return (
            f"policy {names} matches nothing: the graph holds no {nouns} region. An "
            "attention region is a module call that encloses "
            "scaled_dot_product_attention, or a softmax between two matrix products."
        )
    lines = [f"policy {names} matches none of the {len(reasons)} {nouns} regions:"]
    lines.extend(f"  {region}: {'; '.join(why)}" for region, why in reasons.items())
    return "\n".join(lines)


@dataclass
class _Planner:
    """Turns choices into gates, metrics, buffers and scalars."""

    analysis: Analysis
    buffers: list[Buffer] = field(default_factory=list)
    scalars: dict[str, Scalar] = field(default_factory=dict)

    def add_scalars(self, policy: str, wanted: Iterable[Scalar]) -> tuple[str, ...]:
        """Names of the scalars; two that differ have different names."""
        names = []
        for scalar in wanted:
            known = self.scalars.get(scalar.name, scalar)
            name = scalar.name if known == scalar else f"{policy}.{scalar.name}"
            self.scalars[name] = replace(scalar, name=name)
            names.append(name)
        return tuple(names)

    def add_buffers(self, prefix: str, values: Sequence[Tensor]) -> tuple[str, ...]:
        own = [
            Buffer(f"{prefix}.{index}", TensorType.of(value))
            for index, value in enumerate(values)
        ]
        self.buffers.extend(own)
        return tuple(buffer.name for buffer in own)

    def gate(self, choice: Choice) -> Gate:
        region, predictor = choice.region, choice.policy.predictor
        nodes = self.analysis.nodes
        results = [nodes[name] for name in region.results]
        operands = self._streams(region, results) if predictor.continues else ()
        fakes = [fake_value(node) for node in results]
        values = [None if node is None else fake_value(node) for node in operands]
        check_predict(choice.policy.name, region.name, predictor, fakes, values)
        held = predictor.initial(fakes, values)
        return Gate(
            region.name,
            choice.policy.name,
            predictor,
            self.add_buffers(region.name, held),
            tuple("" if node is None else node.name for node in operands),
            self.add_scalars(choice.policy.name, predictor.scalars),
        )

    def _streams(
        self, region: Region, results: Sequence[fx.Node]
    ) -> tuple[fx.Node | None, ...]:
        names = region.streams or region.operands
        operands = [self.analysis.nodes[name] for name in names]
        found = tuple(pair(result, operands) for result in results)
        if region.streams and not any(found):
            raise PolicyError(
                f"what {region.name} gives continues no stream that enters it: "
                f"{_types(results)} after {_types(operands)}. The streams are joined "
                "or rearranged on the way; begin or end the run elsewhere."
            )
        return found

    def metric(self, policy: Policy, observed: Sequence[fx.Node]) -> Metric:
        decision = policy.decision
        assert isinstance(decision, Threshold)
        fakes = [fake_value(node) for node in observed]
        check_measure(policy.name, decision.indicator, fakes)
        held = decision.indicator.initial(fakes)
        return Metric(
            policy.name,
            decision,
            tuple(node.name for node in observed),
            self.add_buffers(f"?{policy.name}", held),
            self.add_scalars(policy.name, decision.indicator.scalars),
        )


def _types(nodes: Sequence[fx.Node]) -> str:
    return ", ".join(str(TensorType.of(fake_value(node))) for node in nodes)


def without(region: Region, analysis: Analysis, before: set[fx.Node]) -> Region:
    """The region less the nodes that a decision about it looks at.

    Raises:
        PolicyError: If nothing would remain.
    """
    nodes = [analysis.nodes[name] for name in region.nodes]
    kept = [node for node in nodes if node not in before]
    if len(kept) == len(nodes):
        return region
    if {node.name for node in nodes if node in before} & set(region.results):
        raise PolicyError(
            f"the decision about {region.name} looks at what it computes: observe "
            "something before it"
        )
    return replace(
        region,
        nodes=tuple(node.name for node in kept),
        operands=tuple(node.name for node in operands_of(kept)),
    )


def plan(program: Program, policies: Sequence[Policy]) -> Program:
    """The program with its plan: gates, metrics, buffers and scalars."""
    analysis = Analysis(program)
    choices = assign(analysis, policies)
    used = {choice.policy.name for choice in choices}
    observed = {
        policy.name: policy.decision.indicator.probe.observe(analysis)
        for policy in policies
        if policy.name in used and isinstance(policy.decision, Threshold)
    }
    cones = {name: with_items(ancestors(nodes)) for name, nodes in observed.items()}
    choices = [
        replace(c, region=without(c.region, analysis, cones.get(c.policy.name, set())))
        for c in choices
    ]
    choices = _inner_first(choices, analysis)
    _refuse_hidden_decisions(choices, observed)
    planner = _Planner(analysis)
    metrics = tuple(
        planner.metric(policy, observed[policy.name])
        for policy in policies
        if policy.name in observed
    )
    gates = tuple(planner.gate(choice) for choice in choices)
    taken = {choice.region.name: choice.region for choice in choices}
    known = {region.name for region in program.regions}
    regions = [taken.get(region.name, region) for region in program.regions]
    regions.extend(region for name, region in taken.items() if name not in known)
    return program.evolve(
        regions=tuple(regions),
        gates=gates,
        metrics=metrics,
        buffers=tuple(planner.buffers),
        scalars=tuple(planner.scalars.values()),
    )


def _inner_first(choices: Sequence[Choice], analysis: Analysis) -> list[Choice]:
    """In graph order, but what lies inside another region comes before it."""
    place = {name: index for index, name in enumerate(analysis.nodes)}
    sets = [set(choice.region.nodes) for choice in choices]

    def key(index: int) -> tuple[int, int]:
        depth = sum(sets[index] < other for other in sets)
        return -depth, place[choices[index].region.nodes[0]]

    return [choices[index] for index in sorted(range(len(choices)), key=key)]


def _refuse_hidden_decisions(
    choices: Sequence[Choice], observed: dict[str, tuple[fx.Node, ...]]
) -> None:
    """Refuse a decision about what lies inside, or looks inside, another's region."""
    for outer in choices:
        nodes = set(outer.region.nodes)
        visible = set(outer.region.results)
        for inner in choices:
            name = inner.policy.name
            if name not in observed or name == outer.policy.name:
                continue
            seen = {node.name for node in observed[name]}
            if set(inner.region.nodes) < nodes or seen & (nodes - visible):
                raise PolicyError(
                    f"policy {name} decides from data about {inner.region.name}, and "
                    f"{outer.region.name} of policy {outer.policy.name} lies around "
                    "it or around what it looks at, and may not be computed at all. "
                    "Give one of them a static decision, or other regions."
                )


@dataclass(frozen=True)
class PlanGates:
    """Tag regions with gates, by policy.

    Args:
        policies: In order of precedence.
    """

    policies: tuple[Policy, ...]
    name: ClassVar[str] = "plan-gates"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per gate."""
        planned = plan(program, self.policies)
        if planned.gates == program.gates and planned.buffers == program.buffers:
            return PassResult(program, 0)
        return PassResult(planned, len(planned.gates))
