"""What would be cached, what would not, and what each variant costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from graphcache.api import trace
from graphcache.backends.registry import Explains, get_backend
from graphcache.lowering import Choice, lower, signature_name
from graphcache.policy import Policy, configuration
from graphcache.printer import format_plan
from graphcache.program import (
    Fork,
    InputKind,
    Lowered,
    Program,
    TensorType,
    dtype_name,
    fake_value,
    placeholders,
    segments,
)
from graphcache.rewriting import policies_of


@dataclass(frozen=True)
class VariantCost:
    """What a step runs under one outcome of all decisions.

    Attributes:
        name: The decisions: ``spatial=reuse``.
        nodes: Nodes of its graphs.
        flops: Floating-point operations of its products and convolutions, each
            multiply-add counted as two.
    """

    name: str
    nodes: int
    flops: int


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; its text is the report.

    Attributes:
        program: The cached program.
        policies: Those that took regions, in predicate order.
        lowering: How the program is lowered, and why.
        variants: Every reachable outcome, the all-compute one first.
        weights: Bytes of the weights that the program reads, by dtype, the most first.
            Of quantised weights, those of the tensors that they are made of.
        notes: What the backend says of the graphs that it would be given.
    """

    program: Program
    policies: tuple[Policy, ...]
    lowering: Choice
    variants: tuple[VariantCost, ...]
    weights: Mapping[torch.dtype, int]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [format_plan(self.program)]
        if self.weights:
            parts = [f"{n} {dtype_name(dtype)}" for dtype, n in self.weights.items()]
            whole = sum(self.weights.values())
            lines.append(f"weights: {whole} bytes ({', '.join(parts)})")
        for policy in self.policies:
            lines.append(f"{policy.name}: {policy.decision}, {policy.predictor}")
        lines.append(f"lowering {self.lowering.name}: {self.lowering.reason}")
        whole = self.variants[0].flops
        for variant in self.variants:
            share = f" ({variant.flops / whole:.0%})" if whole else ""
            lines.append(
                f"graph {variant.name}: {variant.nodes} nodes, "
                f"{variant.flops / 1e6:.1f} MFLOP{share}"
            )
        return "\n".join([*lines, *self.notes])


def explain(
    module: nn.Module,
    config: object,
    /,
    *args: Any,
    backend: str | None = None,
    **kwargs: Any,
) -> Explanation:
    """Report what `compile` would do, without compiling.

    Args:
        module: The transformer, in eval mode.
        config: As for `compile`.
        *args: Positional arguments of one call.
        backend: Also report what this backend would make of the graphs: for
            ``"tensorrt"``, the operators that it has no converter for.
        **kwargs: Keyword arguments of one call.

    Raises:
        PolicyError: If `config` is unknown, malformed or matches nothing.
        BackendError: If the backend is unknown.
        CaptureError: If the module cannot be captured.
    """
    chosen = None if backend is None else get_backend(backend)
    program = trace(module, config, *args, **kwargs)
    policies = policies_of(program, configuration(config))
    lowering = lower(program, policies)
    costs = [
        cost
        for signature, tree in lowering.routes.items()
        for cost in _costs(
            tree, dict(zip(lowering.host, signature, strict=True)), program
        )
    ]
    notes: tuple[str, ...] = ()
    if isinstance(chosen, Explains):
        trees = (*lowering.routes.values(), *lowering.hoisted.values())
        parts = {id(part): part for tree in trees for part in segments(tree)}
        notes = chosen.explain(tuple(parts.values()))
    return Explanation(
        program,
        policies,
        lowering.choice,
        tuple(dict.fromkeys(costs)),
        weight_bytes(program),
        notes,
    )


def weight_bytes(program: Program) -> dict[torch.dtype, int]:
    """Bytes of the weights that a program reads, by dtype, the most first."""
    nodes = {node.name: node for node in placeholders(program.graph)}
    sizes: Counter[torch.dtype] = Counter()
    for entry in program.inputs_of(InputKind.WEIGHT):
        held = TensorType.of(fake_value(nodes[entry.name]))
        sizes[held.dtype] += held.bytes
    return dict(sizes.most_common())


def _costs(
    tree: Lowered, decided: Mapping[str, bool], program: Program
) -> Iterator[VariantCost]:
    """The cost of every outcome: that of the segments that it runs."""
    if not isinstance(tree, Fork):
        names = program.predicates
        signature = tuple(decided[name] for name in names)
        yield VariantCost(
            signature_name(names, signature), len(tree.graph.nodes), count_flops(tree)
        )
        return
    nodes, flops = len(tree.head.graph.nodes), count_flops(tree.head)
    for side, computes in ((tree.compute, True), (tree.reuse, False)):
        for cost in _costs(side, {**decided, tree.predicate: computes}, program):
            yield VariantCost(cost.name, cost.nodes + nodes, cost.flops + flops)


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# torch counts the attention kernels of CUDA and leaves out the CPU's.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops
}


def count_flops(program: Program) -> int:
    """Floating-point operations of a lowered program, counted on fake tensors."""
    values = [fake_value(node) for node in placeholders(program.graph)]
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        fx.Interpreter(program.module).run(*values)
    return int(counter.get_total_flops())
