"""One program, analysed: what selectors and probes look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

from torch import Tensor, fx

from graphcache.analysis.attention import (
    Product,
    attention_flow,
    attention_products,
    attention_scope,
)
from graphcache.analysis.binding import Time, binding_times, latents_path
from graphcache.analysis.blocks import (
    Block,
    Run,
    block_of,
    block_scope,
    chain_of,
    run_of,
    stream_operands,
)
from graphcache.analysis.dataflow import (
    descendants,
    is_convex,
    nodes_by_call,
    operands_of,
    results_of,
)
from graphcache.analysis.feed_forward import is_feed_forward
from graphcache.analysis.residual import origins, pair
from graphcache.capture import Scope, scopes
from graphcache.program import (
    Input,
    InputKind,
    Program,
    Region,
    fake_value,
    output_values,
    placeholders,
)

_STATE = (InputKind.WEIGHT, InputKind.CONSTANT)


class Analysis:
    """What the graph of a source program says, worked out when it is asked for."""

    def __init__(self, program: Program) -> None:
        self.program = program

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The nodes by name."""
        return {node.name: node for node in self.program.graph.nodes}

    @cached_property
    def calls(self) -> dict[str, list[fx.Node]]:
        """The nodes of every module call, by its key."""
        return nodes_by_call(self.program.graph)

    @cached_property
    def scopes(self) -> dict[str, Scope]:
        """Every module call by its key, in order of execution."""
        found: dict[str, Scope] = {}
        for node in self.program.graph.nodes:
            found |= {s.key: s for s in scopes(node) if s.key not in found}
        return found

    @cached_property
    def times(self) -> dict[fx.Node, Time]:
        """The binding time of every node."""
        return binding_times(self.program)

    @cached_property
    def latents_input(self) -> Input | None:
        """The argument that is denoised: the first tensor that the forward takes."""
        arguments = self.program.inputs_of(InputKind.ARGUMENT)
        path = latents_path([entry.target for entry in arguments])
        return next((entry for entry in arguments if entry.target == path), None)

    @cached_property
    def latents(self) -> set[fx.Node]:
        """Every node that depends on the latents."""
        entry = self.latents_input
        if entry is None:
            return set()
        node = self.nodes[entry.name]
        return descendants([node]) | {node}

    @cached_property
    def attention(self) -> dict[str, Region]:
        """Attention regions by the key of their call."""
        state = self._state
        regions: dict[str, Region] = {}
        for product in self._products:
            scope = attention_scope(product, self.calls, state)
            if scope is None or scope.key in regions or not scope.path:
                continue
            nodes = self.calls[scope.key]
            if _is_region(nodes):
                flow = attention_flow(product, set(nodes), state, results_of(nodes))
                regions[scope.key] = _region(scope, "attention", nodes, flow)
        return regions

    @cached_property
    def holds_attention(self) -> set[str]:
        """Keys of the calls that enclose an attention product."""
        return {
            scope.key for product in self._products for scope in scopes(product.node)
        }

    @cached_property
    def _products(self) -> tuple[Product, ...]:
        return tuple(attention_products(self.program.graph, self._state))

    @cached_property
    def _state(self) -> frozenset[str]:
        return frozenset(e.name for e in self.program.inputs if e.kind in _STATE)

    @cached_property
    def feed_forward(self) -> dict[str, Region]:
        """Feed-forward regions by the key of their call."""
        regions: dict[str, Region] = {}
        inner: set[str] = set()
        for key, scope in self.scopes.items():
            if key in inner or key in self.holds_attention:
                continue
            nodes = self.calls[key]
            within = block_scope(nodes[0])
            if within is None or within.key == key or not self._has_block(within):
                continue
            if _is_region(nodes) and is_feed_forward(nodes, self.latents):
                regions[key] = _region(scope, "feed-forward", nodes)
                inner |= {s.key for node in nodes for s in scopes(node)}
        return regions

    def _has_block(self, scope: Scope) -> bool:
        return scope.key in self.holds_attention

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every block that works on the latents, in order of execution."""
        found: dict[str, Block] = {}
        for node in self.program.graph.nodes:
            scope = block_scope(node)
            if scope is None or scope.key in found:
                continue
            if scope.key in self.holds_attention:
                block = block_of(scope, self.calls[scope.key])
                if block is not None and self.latents.issuperset(block.results):
                    found[scope.key] = block
        return tuple(found.values())

    @cached_property
    def chain(self) -> tuple[Block, ...]:
        """The blocks that carry the streams to the output, first to last."""
        return chain_of(self.blocks)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Attention, feed-forward and block regions, in graph order."""
        place = {name: index for index, name in enumerate(self.nodes)}
        blocks = [
            _region(block.scope, "block", block.nodes)
            for block in self.chain
            if _is_region(block.nodes)
        ]
        found = [*blocks, *self.attention.values(), *self.feed_forward.values()]
        found.sort(key=lambda region: place[region.nodes[0]])
        return tuple(_named_apart(found))

    def run(self, head: int, tail: int) -> Run:
        """The run of blocks that leaves `head` before it and `tail` after it."""
        return run_of(self.program.graph, self.chain, head, tail)

    def modules(self) -> Iterator[Region]:
        """Every module call as a region, where it can be one."""
        for key, scope in self.scopes.items():
            nodes = self.calls[key]
            if scope.path and _is_region(nodes):
                yield _region(scope, "module", nodes)

    def model(self) -> Region:
        """The whole model as a region."""
        nodes = [n for n in self.program.graph.nodes if n.op == "call_function"]
        wanted = dict.fromkeys(output_values(self.program.graph))
        results = [node for node in wanted if node.op == "call_function"]
        return region_of("model", "model", nodes, results=results)

    @cached_property
    def entries(self) -> tuple[fx.Node, ...]:
        """The streams that enter the first block of the chain."""
        return stream_operands(self.chain[0]) if self.chain else ()

    def is_hidden(self, value: fx.Node) -> bool:
        """Whether a stream is the one of the latents, not of the prompt."""
        entry = value if value in self.entries else pair(value, self.entries)
        return bool(origins(entry or value) & self.latents)

    def tensor_inputs(self) -> list[fx.Node]:
        """The placeholders of the call's tensors."""
        names = {entry.name for entry in self.program.inputs_of(InputKind.ARGUMENT)}
        return [n for n in placeholders(self.program.graph) if n.name in names]


def _is_region(nodes: Sequence[fx.Node]) -> bool:
    results = results_of(nodes)
    tensors = all(isinstance(fake_value(node), Tensor) for node in results)
    return bool(results) and tensors and is_convex(nodes)


def _region(
    scope: Scope, kind: str, nodes: Sequence[fx.Node], flow: str = ""
) -> Region:
    found = region_of(scope.path, kind, nodes)
    return Region(
        **{
            **vars(found),
            "flow": flow,
            "declares_cross": scope.declares_cross,
            "module_class": scope.module_class,
        }
    )


def region_of(
    name: str,
    kind: str,
    nodes: Sequence[fx.Node],
    *,
    results: Sequence[fx.Node] | None = None,
    streams: Sequence[fx.Node] = (),
) -> Region:
    """A region of the given nodes.

    Args:
        name: Its name, and its path.
        kind: Its kind.
        nodes: Its nodes, in graph order.
        results: What it gives to the rest; by default what is read outside.
        streams: The operands that its results continue, if that is known.
    """
    given = results_of(nodes) if results is None else results
    return Region(
        name=name,
        path=name,
        kind=kind,
        flow="",
        declares_cross=False,
        module_class="",
        nodes=tuple(node.name for node in nodes),
        operands=tuple(node.name for node in operands_of(nodes)),
        results=tuple(node.name for node in given),
        streams=tuple(node.name for node in streams),
    )


def _named_apart(regions: Sequence[Region]) -> Iterator[Region]:
    """Tell further calls of one module apart by ``@1``, and kinds by their name."""
    calls: Counter[tuple[str, str]] = Counter()
    kinds: dict[str, str] = {}
    for region in regions:
        kind = kinds.setdefault(region.path, region.kind)
        count = calls[region.path, region.kind]
        calls[region.path, region.kind] += 1
        name = region.path if kind == region.kind else f"{region.path}:{region.kind}"
        if count:
            name = f"{name}@{count}"
        yield Region(**{**vars(region), "name": name})
