"""plan-gates: the policies tag regions, and nothing is rewritten yet.

The tags are the whole plan: later passes read `Program.gates` and never a policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.passes.manager import PassResult
from graphcache.policy.policy import Policy
from graphcache.program import (
    Buffer,
    Gate,
    Program,
    Region,
    Stage,
    TensorType,
    fake_value,
)


def assign(
    regions: tuple[Region, ...], policies: tuple[Policy, ...]
) -> dict[str, Policy]:
    """Give each region to the first policy that takes it.

    Raises:
        PolicyError: If a required policy, or every policy, matches nothing; the
            message lists what there was to match and why it was not.
    """
    chosen: dict[str, Policy] = {}
    for region in regions:
        for policy in policies:
            if policy.regions.reject(region) is None:
                chosen[region.name] = policy
                break
    used = {policy.name for policy in chosen.values()}
    idle = [policy for policy in policies if policy.name not in used]
    if any(policy.required for policy in idle) or not chosen:
        raise PolicyError(describe_mismatch(regions, idle, chosen))
    return chosen


def describe_mismatch(
    regions: tuple[Region, ...], idle: list[Policy], chosen: dict[str, Policy]
) -> str:
    """What the idle policies could have matched, and why each region was refused."""
    names = ", ".join(policy.name for policy in idle)
    if not regions:
        return (
            f"policy {names} matches nothing: the graph holds no attention region. An "
            "attention region is a module call that encloses "
            "scaled_dot_product_attention, or a softmax between two matrix products."
        )
    lines = [f"policy {names} matches none of the {len(regions)} attention regions:"]
    for region in regions:
        reasons = [
            f"{policy.name}: {_reason(policy, region, chosen)}" for policy in idle
        ]
        lines.append(f"  {region.name} ({region.flow}): {'; '.join(reasons)}")
    return "\n".join(lines)


def _reason(policy: Policy, region: Region, chosen: dict[str, Policy]) -> str:
    reason = policy.regions.reject(region)
    if reason is not None:
        return reason
    return f"taken by {chosen[region.name].name}"


def plan(
    program: Program, policies: tuple[Policy, ...]
) -> tuple[tuple[Gate, ...], tuple[Buffer, ...]]:
    """The gates and buffers that the policies ask for, in graph order."""
    chosen = assign(program.regions, policies)
    nodes = {node.name: node for node in program.graph.nodes}
    gates: list[Gate] = []
    buffers: list[Buffer] = []
    for region in program.regions:
        policy = chosen.get(region.name)
        if policy is None:
            continue
        outputs = [fake_value(nodes[name]) for name in region.results]
        held: list[Tensor] = list(policy.predictor.initial(outputs))
        own = [
            Buffer(f"{region.name}.{index}", TensorType.of(value))
            for index, value in enumerate(held)
        ]
        names = tuple(buffer.name for buffer in own)
        gates.append(Gate(region.name, policy.name, policy.predictor, names))
        buffers.extend(own)
    return tuple(gates), tuple(buffers)


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
        gates, buffers = plan(program, self.policies)
        if gates == program.gates and buffers == program.buffers:
            return PassResult(program, 0)
        return PassResult(program.evolve(gates=gates, buffers=buffers), len(gates))
