"""Stable text for programs: typed, without addresses or times.

Weights print as ``@path``, buffers as ``&name``, decisions as ``?name``, every other
value as ``%name``. A comment line names the module call that the nodes below it
belong to. Goldens, dumps and the documentation all use this text.
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
    InputKind.BUFFER: "&",
}
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
        if node.op in ("placeholder", "output", "get_attr") or _is_gate_item(node):
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
    """The plan: one line per gate, with its buffers and their bytes."""
    types = {buffer.name: buffer.type for buffer in program.buffers}
    lines = []
    for gate in program.gates:
        region = program.region(gate.region)
        held = ", ".join(f"&{name}: {types[name]}" for name in gate.buffers)
        lines.append(f"{gate.predicate}: {region.name} ({region.flow}) holds {held}")
    tagged = {gate.region for gate in program.gates}
    lines.extend(
        f"not cached: {region.name} ({region.flow})"
        for region in program.regions
        if region.name not in tagged
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
        yield f"  region {region.name}: {region.flow} {region.kind}{tag}"


def _return_line(program: Program, names: Names) -> str:
    values = output_values(program.graph)
    results = ", ".join(_value(v, names) for v in values[: program.results])
    stores = [
        f"&{store} = {_value(value, names)}"
        for store, value in zip(program.stores, values[program.results :], strict=True)
    ]
    return " | ".join([f"return {results}", *stores])


def _node_lines(node: fx.Node, names: Names) -> list[str]:
    return _gate_lines(node, names) if is_gate(node) else [_line(node, names)]


def _gate_lines(node: fx.Node, names: Names) -> list[str]:
    items: dict[int, fx.Node] = {user.args[1]: user for user in node.users}  # type: ignore[misc]
    outputs = ", ".join(
        f"%{items[i].name}: {_type(items[i])}" if i in items else "_"
        for i in range(len(fake_value(node)))
    )
    lines = [f"{outputs} = gate {_value(node.args[0], names)} {{"]
    for title, side in zip(
        ("compute", "reuse"), gate_parts(node).branches, strict=True
    ):
        lines.append(f"  {title}:")
        for inner in side.graph.nodes:
            if inner.op not in ("placeholder", "output"):
                lines.append(f"    {_line(inner, names)}")
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
    value = fake_value(node)
    if isinstance(value, Tensor):
        return str(TensorType.of(value))
    if isinstance(value, (tuple, list)):
        return f"({', '.join(str(TensorType.of(item)) for item in value)})"
    return type(value).__name__


def _op_name(node: fx.Node) -> str:
    op = node.target
    if isinstance(op, torch._ops.OpOverload):
        return op._schema.name.removeprefix("aten::")
    return str(getattr(op, "__name__", op))


def _op_counts(graph: fx.Graph) -> Counter[str]:
    return Counter(_op_name(node) for node in graph.nodes if node.op == "call_function")


def _input_name(entry: Input) -> str:
    return _SIGILS[entry.kind] + entry.target


def _path(node: fx.Node) -> str:
    custom = node.meta.get("custom") or {}
    if "region" in custom:
        return str(custom["region"])
    enclosing = custom.get("scopes", ())
    return enclosing[-1].path if enclosing else ""


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root + ".")


def _is_gate_item(node: fx.Node) -> bool:
    return is_getitem(node) and is_gate(node.args[0])  # type: ignore[arg-type]
