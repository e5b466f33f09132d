"""Conditions: editing a graph together with the branches that it may take.

A branch is a graph of its own, an attribute of the module that holds the condition, and
may hold conditions again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx

from graphcache.passes.dead_code import erase_dead_nodes
from graphcache.program import (
    copy_module,
    fake_value,
    is_getitem,
    output_node,
    output_values,
    placeholders,
)

_cond = torch.ops.higher_order.cond
_view_as_real = torch.ops.aten.view_as_real.default
_view_as_complex = torch.ops.aten.view_as_complex.default


def conditions(graph: fx.Graph) -> list[fx.Node]:
    """The conditions of a graph, without those of their branches."""
    return graph.find_nodes(op="call_function", target=_cond)


def sides(node: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The branches of a condition."""
    owner = node.graph.owning_module
    assert owner is not None
    names: Any = node.args[1:3]
    then, other = (owner.get_submodule(name.target) for name in names)
    return cast(fx.GraphModule, then), cast(fx.GraphModule, other)


def operands(node: fx.Node) -> list[fx.Node]:
    """What the branches of a condition are given."""
    return list(cast("tuple[fx.Node, ...]", node.args[3]))


def set_operands(node: fx.Node, values: list[fx.Node]) -> None:
    """Give the branches of a condition something else."""
    node.args = (*node.args[:3], tuple(values))


def parts(module: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """A module and all its branches, the innermost first."""
    for node in conditions(module.graph):
        for side in sides(node):
            yield from parts(side)
    yield module


def copy_whole(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with branches of its own."""
    copied = copy_module(module)
    for node in conditions(copied.graph):
        names: Any = node.args[1:3]
        for name, side in zip(names, sides(node), strict=True):
            copied.add_submodule(name.target, copy_whole(side))
    return copied


def drop_unread_operands(module: fx.GraphModule) -> None:
    """Give no condition what neither of its branches reads, and do not work it out."""
    for node in conditions(module.graph):
        both = sides(node)
        for side in both:
            drop_unread_operands(side)
        inputs = list(zip(*(placeholders(side.graph) for side in both), strict=True))
        values = operands(node)
        kept = [any(place.users for place in places) for places in inputs]
        pairs = zip(values, kept, strict=True)
        set_operands(node, [value for value, read in pairs if read])
        for places, read in zip(inputs, kept, strict=True):
            for place in () if read else places:
                place.graph.erase_node(place)
    erase_dead_nodes(module.graph)


def lift_constants(module: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Make inputs of the tensors that a module and its branches hold.

    Args:
        module: Gets a placeholder for each, after those that it has.

    Returns:
        The tensors, by placeholder, in order.
    """
    for node in conditions(module.graph):
        _lift_from_sides(node)
    graph, after = module.graph, _end_of_inputs(module.graph)
    found: dict[fx.Node, Tensor] = {}
    for node in graph.find_nodes(op="get_attr"):
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            continue
        with graph.inserting_before(after):
            place = graph.placeholder(f"held_{len(found)}")
        place.meta = dict(node.meta)
        node.replace_all_uses_with(place)
        graph.erase_node(node)
        found[place] = tensor
    return found


def _lift_from_sides(node: fx.Node) -> None:
    """Hold what the branches of a condition hold, and give it to them."""
    owner = node.graph.owning_module
    assert owner is not None
    both = sides(node)
    values = operands(node)
    for side, other in (both, both[::-1]):
        for place, tensor in lift_constants(side).items():
            name = f"_held_{sum(1 for _ in owner.buffers(recurse=False))}"
            owner.register_buffer(name, tensor)
            with node.graph.inserting_before(node):
                held = node.graph.get_attr(name)
            held.meta = dict(place.meta)
            values.append(held)
            with other.graph.inserting_before(_end_of_inputs(other.graph)):
                other.graph.placeholder(f"unread_{len(values)}").meta = dict(place.meta)
    set_operands(node, values)


def _end_of_inputs(graph: fx.Graph) -> fx.Node:
    """The node before which another placeholder is the last one."""
    inputs = placeholders(graph)
    return inputs[-1].next if inputs else next(iter(graph.nodes))


def pass_reals(module: fx.GraphModule) -> int:
    """Let no complex number into a condition or out of one: pairs of reals instead.

    Returns:
        How many values were changed.
    """
    count = 0
    for node in conditions(module.graph):
        count += sum(map(pass_reals, sides(node)))
        values = operands(node)
        for index, value in enumerate(values):
            if fake_value(value).is_complex():
                values[index] = _enter(node, index, value)
                count += 1
        set_operands(node, values)
        for index, given in enumerate(fake_value(node)):
            if given.is_complex():
                _leave(node, index)
                count += 1
    return count


def _enter(node: fx.Node, index: int, value: fx.Node) -> fx.Node:
    """Give a condition the pair of an operand."""
    with node.graph.inserting_before(node):
        pair = _call(_view_as_real, value)
    for side in sides(node):
        place = placeholders(side.graph)[index]
        readers = list(place.users)
        place.meta = {**place.meta, "val": pair.meta["val"]}
        with side.graph.inserting_before(_end_of_inputs(side.graph)):
            whole = _call(_view_as_complex, place)
        for reader in readers:
            reader.replace_input_with(place, whole)
    return pair


def _leave(node: fx.Node, index: int) -> None:
    """Take the pair of a result from a condition."""
    for side in sides(node):
        output = output_node(side.graph)
        given = list(output_values(side.graph))
        with side.graph.inserting_before(output):
            given[index] = _call(_view_as_real, given[index])
        output.args = (tuple(given),)
    types = list(fake_value(node))
    types[index] = _view_as_real(types[index])
    node.meta = {**node.meta, "val": tuple(types)}
    for item in [user for user in node.users if is_getitem(user)]:
        if item.args[1] != index:
            continue
        readers = list(item.users)
        item.meta = {**item.meta, "val": types[index]}
        with node.graph.inserting_after(item):
            whole = _call(_view_as_complex, item)
        for reader in readers:
            reader.replace_input_with(item, whole)


def _call(target: Any, value: fx.Node) -> fx.Node:
    node = value.graph.call_function(target, (value,))
    node.meta["val"] = target(fake_value(value))
    return node
