"""spectral-matmul: Fourier transforms as products, complex numbers as two real ones.

Some targets have neither transforms nor complex numbers. A transform along a dimension
is a product with a table of cosines and one of sines, which the graph works out itself
(from nothing, so that whoever folds constants makes them constants). What is complex
becomes a pair of real tensors between the program's inputs and its outputs, whose types
stay as they are.

Not bitwise: a product adds up in another order than a transform does. In fp32 they
agree to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from graphcache.errors import BackendError
from graphcache.passes.branches import inline
from graphcache.passes.conditions import copy_whole, parts, pass_reals
from graphcache.passes.dead_code import erase_dead_nodes
from graphcache.passes.manager import PassResult
from graphcache.passes.pairs import RULES, Pair, join, split
from graphcache.printer import format_excerpt
from graphcache.program import (
    Program,
    Stage,
    fake_value,
    is_getitem,
    output_node,
    output_values,
    placeholders,
)

_view_as_real = torch.ops.aten.view_as_real.default
_view_as_complex = torch.ops.aten.view_as_complex.default
_select = torch.ops.aten.select.int
_stack = torch.ops.aten.stack.default


def is_complex(node: fx.Node) -> bool:
    """Whether the node's value, or one of its values, is complex."""
    return any(
        isinstance(leaf, Tensor) and leaf.is_complex()
        for leaf in pytree.tree_leaves(fake_value(node))
    )


def is_boundary(node: fx.Node) -> bool:
    """Whether the node only takes an input apart, or puts an output together."""
    if node.target is _view_as_real:
        return all(value.op == "placeholder" for value in node.all_input_nodes)
    return node.target is _view_as_complex and all(
        user.op == "output" for user in node.users
    )


def spectral_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Every node that computes with complex numbers."""
    return [
        node
        for node in graph.nodes
        if node.op == "call_function"
        and (is_complex(node) or any(map(is_complex, node.all_input_nodes)))
        and not is_boundary(node)
    ]


@dataclass(frozen=True)
class Traced:
    """A function of a tree that holds nodes, traced.

    Attributes:
        graph: Its placeholders are the nodes of the tree, in order.
        nodes: Those nodes.
        shape: How the outputs of the graph are laid out.
    """

    graph: fx.Graph
    nodes: list[fx.Node]
    shape: pytree.TreeSpec


def trace(rule: Callable[..., Any], tree: Any) -> Traced:
    """Trace a function.

    Args:
        rule: Takes the arguments with fake tensors in place of nodes.
        tree: Positional and keyword arguments.
    """
    leaves, spec = pytree.tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]
    nodes = [leaves[place] for place in places]
    shape: list[pytree.TreeSpec] = []

    def flat(*tensors: Tensor) -> tuple[Any, ...]:
        given = dict(zip(places, tensors, strict=True))
        values = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
        args, kwargs = pytree.tree_unflatten(values, spec)
        results, shaped = pytree.tree_flatten(rule(*args, **kwargs))
        shape.append(shaped)
        return tuple(results)

    fakes = _of_one_mode([fake_value(node) for node in nodes])
    return Traced(make_fx(flat)(*fakes).graph, nodes, shape[-1])


def emit(graph: fx.Graph, rule: Callable[..., Any], tree: Any, origin: fx.Node) -> Any:
    """Put what a rule does at the end of a graph.

    Args:
        graph: Where to.
        rule: As for `trace`.
        tree: Its arguments, with nodes of `graph`.
        origin: The node that this stands for; names the place in the model.

    Returns:
        What the rule gives, with nodes of `graph` in place of tensors.
    """
    traced = trace(rule, tree)
    before = len(graph.nodes)
    made = inline(traced.graph, graph, traced.nodes)
    for node in list(graph.nodes)[before:]:
        node.meta = {"val": node.meta["val"], **_origin(origin)}
    return pytree.tree_unflatten(made, traced.shape)


def _of_one_mode(values: list[Any]) -> list[Any]:
    """Fakes that can be traced together: a joined program holds those of two traces."""
    if not values:
        return []
    mode = values[0].fake_mode
    return [v if v.fake_mode is mode else mode.from_tensor(v) for v in values]


def _origin(node: fx.Node) -> dict[str, Any]:
    kept = ("custom", "stack_trace", "nn_module_stack")
    return {key: node.meta[key] for key in kept if key in node.meta}


def take_parts(graph: fx.Graph) -> None:
    """Take a part from where it is, not from the tensor that holds both.

    What is read of an inverse transform is its real part alone.
    """
    for node in graph.find_nodes(op="call_function", target=_select):
        whole, dim, index = node.args
        if whole.target is not _stack:
            continue
        rank = fake_value(whole).ndim
        if whole.args[1] % rank == dim % rank == rank - 1:
            node.replace_all_uses_with(whole.args[0][index])


class Rewriter:
    """Copies a graph, its complex values as pairs.

    Args:
        source: The graph to copy.
    """

    def __init__(self, source: fx.Graph) -> None:
        self.source = source
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.taken: dict[fx.Node, Pair] = {}
        self.spectral = set(spectral_nodes(source))

    def run(self) -> fx.Graph:
        """The copy."""
        for node in self.source.nodes:
            if node.op == "output":
                self._finish(node)
            else:
                self._copy(node)
        take_parts(self.graph)
        erase_dead_nodes(self.graph)
        return self.graph

    def _rewritten(self, node: fx.Node) -> Any:
        if is_getitem(node):
            source: Any = node.args[0]
            return self.values[source][node.args[1]]
        target: Any = node.target
        rule = RULES.get(getattr(target, "overloadpacket", None))
        if rule is not None:
            arguments = fx.map_arg((node.args, node.kwargs), self._parts)
            return emit(self.graph, rule, arguments, node)
        if isinstance(target, torch._ops.OpOverload) and target._can_decompose():
            return self._decomposed(node, target)
        raise BackendError(
            f"{target} of complex numbers has no form in real ones: it cannot be "
            f"lowered for a target without them\n{format_excerpt(node)}"
        )

    def _decomposed(self, node: fx.Node, op: torch._ops.OpOverload) -> Any:
        """An operator that is defined by others, by those."""
        traced = trace(op, (node.args, node.kwargs))
        inner = placeholders(traced.graph)
        for place, value in zip(inner, traced.nodes, strict=True):
            self.values[place] = self.values[value]
            if is_complex(value):
                self.taken[place] = self._parts(value)
        self.spectral.update(spectral_nodes(traced.graph))
        for part in traced.graph.nodes:
            if part.op == "call_function":
                part.meta = {"val": part.meta["val"], **_origin(node)}
                self._copy(part)
        given = [self.values[value] for value in output_values(traced.graph)]
        return pytree.tree_unflatten(given, traced.shape)

    def _copy(self, node: fx.Node) -> None:
        if node in self.spectral:
            self.values[node] = self._rewritten(node)
        else:
            self.values[node] = self.graph.node_copy(node, self._whole)

    def _parts(self, node: fx.Node) -> Any:
        """A value as a rule is given it."""
        if node.op != "placeholder" or not is_complex(node):
            return self.values[node]
        if node not in self.taken:
            whole = self.values[node]
            self.taken[node] = emit(self.graph, split, ((whole,), {}), node)
        return self.taken[node]

    def _whole(self, node: fx.Node) -> Any:
        """A value as a node that knows no pairs is given it."""
        value = self.values[node]
        if isinstance(value, Pair):
            return emit(self.graph, join, ((value,), {}), node)
        return value

    def _finish(self, node: fx.Node) -> None:
        values = fx.map_arg(node.args[0], self._whole)
        self.graph.output(values)
        output_node(self.graph).meta = dict(node.meta)


@dataclass(frozen=True)
class SpectralMatmul:
    """Rewrite what computes with complex numbers in real ones."""

    name: ClassVar[str] = "spectral-matmul"
    before: ClassVar[tuple[Stage, ...]] = (Stage.LOWERED, Stage.CONDITIONAL)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per node of complex numbers, branches included.

        Raises:
            BackendError: If an operator has no form in real numbers.
        """
        edits = sum(len(spectral_nodes(part.graph)) for part in parts(program.module))
        if not edits:
            return PassResult(program, 0)
        module = copy_whole(program.module)
        pass_reals(module)
        for part in parts(module):
            part.graph = Rewriter(part.graph).run()
        return PassResult(program.evolve(module=module), edits)
