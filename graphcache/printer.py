"""Stable text for programs: typed, without addresses or times.

Weights print as ``@path``, buffers as ``&name``, decisions as ``?name``, numbers of the
host as ``$name``, values of an earlier segment as ``^name``, every other value as
``%name``. A comment line names the module call that the nodes below it belong to.
Goldens, dumps and the documentation all use this text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from graphcache.ops import gate_parts, is_gate
from graphcache.program import (
    Input,
    InputKind,
    Program,
    TensorType,
    dtype_name,
    fake_value,
    is_getitem,
    output_values,
    placeholders,
)

_SIGILS = {
    InputKind.WEIGHT: "@",
    InputKind.CONSTANT: "@",
    InputKind.ARGUMENT: "%",
    InputKind.DECISION: "?",
    InputKind.SCALAR: "$",
    InputKind.THRESHOLD: "$",
    InputKind.LIVE: "^",
    InputKind.BUFFER: "&",
}
_COND = torch.ops.higher_order.cond
_END = 2**63 - 1  # what ATen writes for the open end of a slice
Names = Mapping[str, str]


def format_program(program: Program, *, within: str | None = None) -> str:
    """The text of a program.

    Args:
        program: What to print.
        within: Print only the nodes inside this module path, such as
            ``transformer_blocks.0``.
    """
    names = {entry.name: _input_name(entry) for entry in program.inputs}
    lines = [*_header(program, names)]
    scope = ""
    for node in program.graph.nodes:
        path = _path(node)
        if node.op in ("placeholder", "output", "get_attr") or _is_branched_item(node):
            continue
        if within is not None and not _is_within(path, within):
            continue
        if path != scope:
            lines.append(f"  # {path or 'forward'}")
            scope = path
        lines.extend("  " + line for line in _node_lines(node, names))
    if within is None:
        lines.append("  " + _return_line(program, names))
    return "\n".join([*lines, "}"])


def format_excerpt(node: fx.Node, around: int = 10) -> str:
    """The graph text around a node, which is marked."""
    nodes = [item for item in node.graph.nodes if item.op != "placeholder"]
    if node not in nodes:
        return f"  > %{node.name}"
    position = nodes.index(node)
    start = max(0, position - around)
    return "\n".join(
        f"{'  > ' if item is node else '    '}{_line(item, {})}"
        for item in nodes[start : position + around + 1]
    )


def format_diff(before: Program, after: Program, edits: int) -> str:
    """One line: how many edits, and what the node counts were and are."""
    counts = [_op_counts(program.graph) for program in (before, after)]
    changed = [
        f"{name} {counts[1][name] - counts[0][name]:+d}"
        for name in sorted(counts[0] | counts[1])
        if counts[0][name] != counts[1][name]
    ]
    sizes = [sum(side.values()) for side in counts]
    total = f"nodes {sizes[0]} -> {sizes[1]}"
    return "; ".join([f"{edits} edits", total, *changed])


def format_plan(program: Program) -> str:
    """The plan: one line per gate and per decision of the graph, with their buffers."""
    types = {buffer.name: buffer.type for buffer in program.buffers}

    def held(names: Iterable[str]) -> str:
        return ", ".join(f"&{name}: {types[name]}" for name in names) or "nothing"

    lines = []
    for metric in program.metrics:
        seen = ", ".join(f"%{name}" for name in metric.observed)
        lines.append(
            f"{metric.predicate}: observes {seen} holds {held(metric.buffers)}"
        )
    for gate in program.gates:
        region = program.region(gate.region)
        shown = f"{region.name} ({region.flow or region.kind})"
        lines.append(f"{gate.predicate}: {shown} holds {held(gate.buffers)}")
    tagged = {
        node for gate in program.gates for node in program.region(gate.region).nodes
    }
    lines.extend(
        f"not cached: {region.name} ({region.flow or region.kind})"
        for region in program.regions
        if region.kind == "attention" and tagged.isdisjoint(region.nodes)
    )
    lines.append(f"buffers: {program.buffer_bytes} bytes a stream")
    return "\n".join(lines)


def _header(program: Program, names: Names) -> Iterable[str]:
    yield f"{program.stage.value} program {{"
    values = {node.name: node for node in placeholders(program.graph)}
    for entry in program.inputs:
        if entry.kind not in (InputKind.WEIGHT, InputKind.CONSTANT):
            shown = names[entry.name]
            yield f"  input {shown}: {_type(values[entry.name])}"
    gated = {gate.region: gate.predicate for gate in program.gates}
    for region in program.regions:
        tag = f" gate {gated[region.name]}" if region.name in gated else ""
        kind = f"{region.flow} {region.kind}".strip()
        yield f"  region {region.name}: {kind}{tag}"


def _return_line(program: Program, names: Names) -> str:
    outputs = program.outputs
    parts = [", ".join(_value(value, names) for value in outputs.results)]
    for sigil, targets, values in (
        ("&", program.stores, outputs.stores),
        ("?", program.scores, outputs.scores),
        ("^", program.lives, outputs.lives),
    ):
        parts.extend(
            f"{sigil}{target} = {_value(value, names)}"
            for target, value in zip(targets, values, strict=True)
        )
    return f"return {' | '.join(part for part in parts if part)}"


def _node_lines(node: fx.Node, names: Names) -> list[str]:
    if is_gate(node):
        parts = gate_parts(node)
        predicate = f"?{node.meta['custom']['predicate']}"
        shown = _value(parts.predicate, names)
        title = f"gate {predicate}" if shown == predicate else f"gate {shown}"
        return _branched(node, title, ("compute", "reuse"), parts.branches, names)
    if node.target is _COND:
        owner: Any = node.graph.owning_module
        sides = [owner.get_submodule(arg.target) for arg in node.args[1:3]]  # type: ignore[union-attr]
        title = f"cond {_value(node.args[0], names)}"
        return _branched(node, title, ("compute", "reuse"), sides, names)
    return [_line(node, names)]


def _branched(
    node: fx.Node,
    title: str,
    labels: tuple[str, str],
    sides: Iterable[fx.GraphModule],
    names: Names,
) -> list[str]:
    """A node with two branches, each indented below its label."""
    items: dict[int, fx.Node] = {user.args[1]: user for user in node.users}  # type: ignore[misc]
    outputs = ", ".join(
        f"%{items[i].name}: {_type(items[i])}" if i in items else "_"
        for i in range(len(fake_value(node)))
    )
    lines = [f"{outputs} = {title} {{" if outputs else f"{title} {{"]
    for label, side in zip(labels, sides, strict=True):
        lines.append(f"  {label}:")
        for inner in side.graph.nodes:
            hidden = inner.op in ("placeholder", "output", "get_attr")
            if not hidden and not _is_branched_item(inner):
                lines.extend(f"    {line}" for line in _node_lines(inner, names))
        values = ", ".join(_value(v, names) for v in output_values(side.graph))
        lines.append(f"    return {values}")
    return [*lines, "}"]


def _line(node: fx.Node, names: Names) -> str:
    if node.op == "output":
        return "return"
    if is_getitem(node):
        source = f"{_value(node.args[0], names)}[{node.args[1]}]"
    else:
        kwargs = (f"{key}={_value(v, names)}" for key, v in node.kwargs.items())
        values = ", ".join([*(_value(arg, names) for arg in node.args), *kwargs])
        source = f"{_op_name(node)}({values})"
    return f"%{node.name}: {_type(node)} = {source}"


def _value(value: Any, names: Names) -> str:
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return str(value.target)
    if isinstance(value, fx.Node):
        return names.get(value.name, f"%{value.name}")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_value(item, names) for item in value)}]"
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if value == _END:
        return "end"
    return str(value)


def _type(node: fx.Node) -> str:
    return _type_of(fake_value(node))


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(TensorType.of(value))
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_type_of, value))})"
    # An operator may leave a result out.
    return "None" if value is None else type(value).__name__


def _op_name(node: fx.Node) -> str:
    op = node.target
    if isinstance(op, torch._ops.OpOverload):
        return op._schema.name.removeprefix("aten::")
    return str(getattr(op, "__name__", op))


def _op_counts(graph: fx.Graph) -> Counter[str]:
    return Counter(_op_name(node) for node in graph.nodes if node.op == "call_function")


def _input_name(entry: Input) -> str:
    name = _SIGILS[entry.kind] + entry.target
    return f"{name}.threshold" if entry.kind is InputKind.THRESHOLD else name


def _path(node: fx.Node) -> str:
    custom = node.meta.get("custom") or {}
    if "region" in custom:
        return str(custom["region"])
    enclosing = custom.get("scopes", ())
    return enclosing[-1].path if enclosing else ""


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root + ".")


def _is_branched_item(node: fx.Node) -> bool:
    if not is_getitem(node):
        return False
    source: Any = node.args[0]
    return is_gate(source) or source.target is _COND
