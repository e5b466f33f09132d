"""From a program to a graph that TensorRT can take, and its interface.

Everything here is meant for any version of TensorRT and needs none: what comes out is a
graph that eager PyTorch runs as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from graphcache.errors import BackendError
from graphcache.ops import is_flex_attention, is_gate
from graphcache.passes.conditions import copy_whole, drop_unread_operands, parts
from graphcache.passes.dead_code import erase_dead_nodes
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import real_pipeline
from graphcache.printer import format_excerpt
from graphcache.program import (
    Program,
    Stage,
    fake_value,
    output_node,
    output_values,
    placeholders,
)
from graphcache.tensorrt.interface import Interface, Port, narrow
from graphcache.tensorrt.simplify import (
    cast,
    drop_layouts,
    fold_constants,
    join_slices,
    set_type,
)

_aten = torch.ops.aten


@dataclass(frozen=True)
class Prepared:
    """A program as TensorRT can take it.

    Attributes:
        module: The graph; its placeholders are the engine's inputs.
        interface: How they and its outputs are those of the program.
    """

    module: fx.GraphModule
    interface: Interface

    def example(self) -> tuple[Tensor, ...]:
        """Fakes of the engine's inputs, dense and of one mode, to trace with."""
        values = map(fake_value, placeholders(self.module.graph))
        with FakeTensorMode():
            return tuple(
                torch.empty(value.shape, dtype=value.dtype, device=value.device)
                for value in values
            )


def prepare(
    program: Program,
    frozen: Mapping[int, Tensor] | None = None,
    *,
    conditions: bool = False,
) -> Prepared:
    """Bring a program into a form that TensorRT can take.

    Args:
        program: A lowered program, or a conditional one.
        frozen: Inputs to build in, by index.
        conditions: Whether a conditional one can be taken.

    Raises:
        BackendError: If the program writes, has sizes that depend on data, or branches
            where that cannot be; the message shows where.
    """
    refuse(program, conditions=conditions)
    program = run_passes(program, real_pipeline(), label="tensorrt")
    edited = copy_whole(program.module)
    for part in parts(edited):
        drop_layouts(part.graph)
        join_slices(part.graph)
    inputs = placeholders(edited.graph)
    ports = [Port.of(node.name, fake_value(node)) for node in inputs]
    outputs, sources = _distinct(edited.graph, inputs)
    given = [Port.of(f"output{i}", fake_value(node)) for i, node in enumerate(outputs)]
    output_node(edited.graph).args = (tuple(outputs),)
    for part in parts(edited):
        erase_dead_nodes(part.graph)
        fold_constants(part)
        narrow_doubles(part)
    take_real_parts(edited.graph)
    for part in parts(edited):
        spell_out_promotion(part.graph)
    for index, tensor in (frozen or {}).items():
        _freeze(edited, inputs[index], ports[index], tensor)
    drop_unread_operands(edited)
    taken = [(i, port) for i, port in enumerate(ports) if inputs[i].users]
    _finish(edited, inputs)
    return Prepared(edited, Interface(tuple(taken), tuple(given), sources))


def _finish(module: fx.GraphModule, inputs: list[fx.Node]) -> None:
    """Drop the inputs that nothing reads."""
    for node in inputs:
        # Tracing names an input by its target, and so does TensorRT.
        node.target = node.name
        if not node.users:
            module.graph.erase_node(node)
    for part in parts(module):
        part.graph.lint()
        part.recompile()


def refuse(program: Program, *, conditions: bool = False) -> None:
    """Refuse what no engine can be built from.

    Args:
        program: What an engine is to be built from.
        conditions: Whether it may be a conditional program.

    Raises:
        BackendError: With the node and the graph text around it.
    """
    stages = (Stage.LOWERED, Stage.CONDITIONAL)[: 1 + conditions]
    if program.stage not in stages:
        raise BackendError(
            f"tensorrt takes lowered programs, and this one is {program.stage.value}: "
            'compile with lowering="auto", which gives an engine for each decision'
        )
    for node in (node for part in parts(program.module) for node in part.graph.nodes):
        reason = _obstacle(node)
        if node.target is torch.ops.higher_order.cond and conditions:
            reason = None
        if reason:
            raise BackendError(
                f"tensorrt cannot take {node.name}: {reason}\n{format_excerpt(node)}"
            )


def _obstacle(node: fx.Node) -> str | None:
    if is_gate(node) or node.target is torch.ops.higher_order.cond:
        return "it is a condition, and both sides would be left to eager PyTorch"
    if is_flex_attention(node):
        return "an attention that is given functions has no converter"
    if isinstance(node.target, torch._ops.OpOverload):
        if node.target._schema.is_mutable:
            return (
                "it writes to its operand, which TensorRT would drop without a word: "
                "state has to be an input and an output"
            )
    leaves = pytree.tree_leaves(fake_value(node))
    if node.op != "output" and not all(map(_is_static, leaves)):
        return "its size depends on data, and an engine is built for fixed shapes"
    return None


def _is_static(value: Any) -> bool:
    if isinstance(value, Tensor):
        return all(isinstance(extent, int) for extent in value.shape)
    return not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def _distinct(
    graph: fx.Graph, inputs: list[fx.Node]
) -> tuple[list[fx.Node], tuple[tuple[str, int], ...]]:
    """The outputs that have to be computed, each once, and where each output is."""
    computed: dict[fx.Node, int] = {}
    sources = []
    for value in output_values(graph):
        if value in inputs:
            sources.append(("input", inputs.index(value)))
        else:
            sources.append(("engine", computed.setdefault(value, len(computed))))
    return list(computed), tuple(sources)


def narrow_doubles(module: fx.GraphModule) -> None:
    """Compute in f32 what is written in f64: an engine has no other."""
    for name, buffer in list(module.named_buffers()):
        setattr(module, name, buffer.to(narrow(buffer.dtype)))
    for node in module.graph.nodes:
        value = fake_value(node)
        if node.op in ("placeholder", "get_attr") and isinstance(value, Tensor):
            set_type(node, value.shape, narrow(value.dtype))
        elif node.op == "call_function":
            node.args, node.kwargs = pytree.tree_map_only(
                torch.dtype, narrow, (node.args, node.kwargs)
            )


def take_real_parts(graph: fx.Graph) -> None:
    """Take complex inputs as real ones with a last dimension of 2; give such outputs.

    Between them nothing is complex, by spectral-matmul.
    """
    for node in placeholders(graph):
        value = fake_value(node)
        if not value.is_complex():
            continue
        for user in list(node.users):
            user.replace_all_uses_with(node)
            graph.erase_node(user)
        set_type(node, (*value.shape, 2), value.dtype.to_real())
    outputs = [
        value.args[0] if value.target is _aten.view_as_complex.default else value
        for value in output_values(graph)
    ]
    output_node(graph).args = (tuple(outputs),)
    erase_dead_nodes(graph)


def spell_out_promotion(graph: fx.Graph) -> None:
    """Say outright what a number of the host does to tensors of half precision.

    In PyTorch it leaves their type alone and counts in full; to TensorRT it is a tensor
    like any other, and the result would be f32.
    """
    for node in list(graph.nodes):
        if not _is_mixed(node):
            continue
        dtype = fake_value(node).dtype
        with graph.inserting_before(node):
            wide = {
                value: cast(graph, value, torch.float32)
                for value in node.all_input_nodes
                if fake_value(value).dtype == dtype
            }
        for narrow_value, wide_value in wide.items():
            node.replace_input_with(narrow_value, wide_value)
        with graph.inserting_after(node):
            back = cast(graph, node, dtype)
        node.replace_all_uses_with(back, lambda user, back=back: user is not back)
        set_type(node, fake_value(node).shape, torch.float32)


def _is_mixed(node: fx.Node) -> bool:
    """Whether an elementwise node has operands of half precision and a wider number."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    value = fake_value(node)
    if torch.Tag.pointwise not in target.tags or not isinstance(value, Tensor):
        return False
    if value.dtype not in (torch.float16, torch.bfloat16):
        return False
    operands = [fake_value(operand) for operand in node.all_input_nodes]
    return any(x.dtype == value.dtype for x in operands) and any(
        x.dtype == torch.float32 or x.dtype == torch.float64 for x in operands
    )


def _freeze(module: fx.GraphModule, node: fx.Node, port: Port, value: Tensor) -> None:
    """Build an input in."""
    name = f"frozen_{node.name}"
    module.register_buffer(name, port.enter(value.detach(), value.device))
    with module.graph.inserting_before(node):
        held = module.graph.get_attr(name)
    held.meta = dict(node.meta)
    node.replace_all_uses_with(held)
