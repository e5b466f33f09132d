"""What a program of each stage may contain, and the verifier that holds it to that.

A spec is a table of rules over nodes. A rule answers True (allowed), False (forbidden)
or None (no opinion); the first opinion counts, and a node about which no rule has one
is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graphcache.errors import VerifyError
from graphcache.ops import (
    dropout_probability,
    gate_parts,
    is_flex_attention,
    is_gate,
)
from graphcache.printer import format_excerpt
from graphcache.program import (
    InputKind,
    Program,
    Stage,
    TensorType,
    fake_value,
    is_getitem,
    output_values,
    placeholders,
)

_aten = torch.ops.aten
_COND = torch.ops.higher_order.cond
_HOST_READS = (_aten._local_scalar_dense.default, _aten.item.default)


@dataclass(frozen=True)
class Rule:
    """One row of a spec.

    Attributes:
        reason: What the rule says, for the message when it forbids.
        judge: True, False or None for a node.
    """

    reason: str
    judge: Callable[[fx.Node], bool | None]


def _is_op(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _forbid(condition: Callable[[fx.Node], bool]) -> Callable[[fx.Node], bool | None]:
    return lambda node: False if condition(node) else None


def _allow(condition: Callable[[fx.Node], bool]) -> Callable[[fx.Node], bool | None]:
    return lambda node: True if condition(node) else None


def _is_random(node: fx.Node) -> bool:
    if node.target is _aten.scaled_dot_product_attention.default:
        return dropout_probability(node) != 0.0
    return _is_op(node) and torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]


_STRUCTURE = (
    Rule(
        "placeholders and the output are structure",
        _allow(lambda node: node.op in ("placeholder", "output")),
    ),
    Rule(
        "only functions are called: no module, method or attribute state",
        _forbid(lambda node: node.op in ("call_module", "call_method")),
    ),
)
_DATAFLOW = (
    Rule(
        "state is data flow: no op may write to its operands",
        _forbid(lambda node: _is_op(node) and node.target._schema.is_mutable),  # type: ignore[union-attr]
    ),
    Rule(
        "no op may read a tensor on the host",
        _forbid(lambda node: node.target in _HOST_READS),
    ),
    Rule("no op may draw random numbers", _forbid(_is_random)),
    Rule("functional operators: ATen's, and registered ones", _allow(_is_op)),
    Rule("getitem takes a value out of a tuple", _allow(is_getitem)),
    Rule("arithmetic on sizes that depend on data", _allow(lambda n: _is_symbolic(n))),
    Rule("flex_attention, which takes functions", _allow(is_flex_attention)),
    Rule("the functions of an attention are attributes", _allow(lambda n: _is_mod(n))),
)
_GATES = (
    Rule("gate", _allow(is_gate)),
    Rule("a gate's branches are attributes", _allow(lambda node: _is_branch(node))),
)
_CONDITIONS = (
    Rule("torch.cond", _allow(lambda node: node.target is _COND)),
    Rule("the branches of a condition are attributes", _allow(lambda n: _is_side(n))),
)

SPECS: dict[Stage, tuple[Rule, ...]] = {
    Stage.SOURCE: (*_STRUCTURE, *_DATAFLOW),
    Stage.CACHED: (*_STRUCTURE, *_GATES, *_DATAFLOW),
    Stage.LOWERED: (*_STRUCTURE, *_DATAFLOW),
    Stage.CONDITIONAL: (*_STRUCTURE, *_CONDITIONS, *_DATAFLOW),
}
_SOURCES = (InputKind.WEIGHT, InputKind.CONSTANT, InputKind.ARGUMENT)
_INPUT_KINDS: dict[Stage, tuple[InputKind, ...]] = {
    Stage.SOURCE: _SOURCES,
    Stage.CACHED: tuple(InputKind),
    Stage.LOWERED: (*_SOURCES, InputKind.SCALAR, InputKind.BUFFER, InputKind.LIVE),
    Stage.CONDITIONAL: tuple(kind for kind in InputKind if kind is not InputKind.LIVE),
}


def _is_symbolic(node: fx.Node) -> bool:
    """Whether the node computes a number that stands for a size, not a tensor."""
    return node.op == "call_function" and isinstance(
        fake_value(node), (torch.SymInt, torch.SymFloat, torch.SymBool, int, bool)
    )


def _is_branch(node: fx.Node) -> bool:
    return node.op == "get_attr" and all(is_gate(user) for user in node.users)


def _is_side(node: fx.Node) -> bool:
    return node.op == "get_attr" and all(user.target is _COND for user in node.users)


def _is_mod(node: fx.Node) -> bool:
    return node.op == "get_attr" and all(map(is_flex_attention, node.users))


def verify(program: Program) -> None:
    """Check that a program keeps the rules of its stage, branches included.

    Raises:
        VerifyError: With the rule, the node and the graph text around it.
    """
    _lint(program.graph)
    _check_nodes(program.graph, SPECS[program.stage])
    _check_inputs(program)
    _check_outputs(program)
    kinds = {entry.name: entry.kind for entry in program.inputs}
    for node in program.graph.nodes:
        if is_gate(node):
            _check_gate(node, kinds)


def _lint(graph: fx.Graph) -> None:
    try:
        graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"the graph is malformed: {error}") from error


def _check_nodes(graph: fx.Graph, spec: tuple[Rule, ...]) -> None:
    for node in graph.nodes:
        opinions = ((rule, rule.judge(node)) for rule in spec)
        rule, opinion = next(
            (pair for pair in opinions if pair[1] is not None), (None, False)
        )
        if not opinion:
            reason = rule.reason if rule else f"unknown op {node.target}"
            raise VerifyError(f"{reason}: {node.name}\n{format_excerpt(node)}")
        if _has_value(node) and "val" not in node.meta:
            raise VerifyError(f"{node.name} has no type\n{format_excerpt(node)}")


def _has_value(node: fx.Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.returns)
    return node.op not in ("output", "get_attr")


def _check_inputs(program: Program) -> None:
    names = [node.name for node in placeholders(program.graph)]
    if names != [entry.name for entry in program.inputs]:
        raise VerifyError("the inputs are not the graph's placeholders, in order")
    kinds = _INPUT_KINDS[program.stage]
    for entry in program.inputs:
        if entry.kind not in kinds:
            raise VerifyError(
                f"a {program.stage.value} program has no {entry.kind.value} input: "
                f"{entry.name}"
            )
    known = {
        InputKind.BUFFER: {buffer.name for buffer in program.buffers},
        InputKind.DECISION: set(program.predicates),
        InputKind.THRESHOLD: {metric.predicate for metric in program.metrics},
        InputKind.SCALAR: {scalar.name for scalar in program.scalars},
        InputKind.CONSTANT: set(program.constants),
    }
    for kind, targets in known.items():
        for entry in program.inputs_of(kind):
            if entry.target not in targets:
                raise VerifyError(f"unknown {kind.value} {entry.target}")


def _check_outputs(program: Program) -> None:
    outputs = program.outputs
    for what, names, values in (
        ("stores", program.stores, outputs.stores),
        ("scores", program.scores, outputs.scores),
        ("live values", program.lives, outputs.lives),
    ):
        if len(names) != len(values):
            raise VerifyError(
                f"{len(names)} {what}, but {len(values)} outputs in their place"
            )
    types = {buffer.name: buffer.type for buffer in program.buffers}
    for store, value in zip(program.stores, outputs.stores, strict=True):
        if store not in types:
            raise VerifyError(f"store of an unknown buffer {store}")
        found = TensorType.of(fake_value(value))
        if found != types[store]:
            raise VerifyError(
                f"store of {store} is {found}, the buffer is {types[store]}"
            )


def _check_gate(node: fx.Node, kinds: Mapping[str, InputKind]) -> None:
    parts = gate_parts(node)
    decision = fake_value(parts.predicate)
    kind = kinds.get(parts.predicate.name, InputKind.DECISION)
    scalar = isinstance(decision, Tensor) and not decision.shape
    if kind is not InputKind.DECISION or not scalar or decision.dtype != torch.bool:
        raise VerifyError(f"{node.name} obeys {parts.predicate}, which is no decision")
    for buffer in parts.buffers:
        if kinds.get(buffer.name) is not InputKind.BUFFER:
            raise VerifyError(f"{node.name} holds {buffer}, which is no buffer")
    wanted = list(_types((*parts.operands, *parts.buffers)))
    returned = [_check_branch(node, side, wanted, kinds) for side in parts.branches]
    if returned[0] != returned[1]:
        raise VerifyError(
            f"the branches of {node.name} differ: compute returns "
            f"({', '.join(map(str, returned[0]))}), reuse returns "
            f"({', '.join(map(str, returned[1]))})"
        )


def _check_branch(
    node: fx.Node,
    side: fx.GraphModule,
    wanted: list[Any],
    kinds: Mapping[str, InputKind],
) -> list[Any]:
    _lint(side.graph)
    _check_nodes(side.graph, SPECS[Stage.CACHED])
    if list(_types(placeholders(side.graph))) != wanted:
        raise VerifyError(f"a branch of {node.name} does not take its operands")
    for inner in side.graph.nodes:
        if is_gate(inner):
            # A branch names its placeholders as what they stand for.
            _check_gate(inner, kinds)
    return list(_types(output_values(side.graph)))


def _types(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        value = fake_value(node)
        yield TensorType.of(value) if isinstance(value, Tensor) else value
