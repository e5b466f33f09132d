"""Blocks: the chain of a transformer's layers, and runs of it.

A block is the outermost numbered module call (``transformer_blocks.3``) that holds an
attention and works on the latents. The chain follows the streams backwards from the
last block, through sums and rearrangements, so that refiners, control branches and
other side blocks are not part of it.

A run of blocks is a region: everything between the streams that enter its first block
and those that leave its last. What is added to a stream between two blocks (a
ControlNet's residual, a hint) lies inside and is therefore applied once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from graphcache.analysis.dataflow import ancestors, descendants, operands_of, results_of
from graphcache.analysis.residual import REARRANGED, continued, pair
from graphcache.capture import Scope, scopes
from graphcache.program import fake_value, is_getitem, static_type

_NUMBERED = re.compile(r"(^|\.)\d+$")


@dataclass(frozen=True)
class Block:
    """One call of one block.

    Attributes:
        scope: The module call.
        nodes: Its nodes, in graph order.
        operands: The tensors it reads, in order of first use.
        results: The tensors of it that are read outside, in graph order.
    """

    scope: Scope
    nodes: tuple[fx.Node, ...]
    operands: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Run:
    """A run of blocks.

    Attributes:
        first: Path of the first block.
        last: Path of the last block.
        starts: The streams before the first block.
        nodes: Everything between, in graph order.
        results: What is read outside, in graph order.
    """

    first: str
    last: str
    starts: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]


def block_scope(node: fx.Node) -> Scope | None:
    """The outermost numbered module call that encloses a node."""
    return next((s for s in scopes(node) if _NUMBERED.search(s.path)), None)


def block_of(scope: Scope, nodes: Sequence[fx.Node]) -> Block | None:
    """The block of a call, unless it passes on something that is no tensor."""
    results = results_of(nodes)
    if not all(isinstance(fake_value(node), Tensor) for node in results):
        return None
    return Block(scope, tuple(nodes), tuple(_tensors(operands_of(nodes))), (*results,))


def _tensors(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if isinstance(fake_value(node), Tensor)]


def chain_of(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks that carry the streams to the output, first to last.

    Args:
        blocks: Every block, in order of execution.
    """
    chain: list[Block] = []
    pending = list(blocks)
    while pending:
        block = pending.pop()
        if chain and not feeds(block, chain[0]):
            continue
        chain.insert(0, block)
    return tuple(chain)


def feeds(block: Block, later: Block) -> bool:
    """Whether a later block continues a stream of this one."""
    streams = stream_operands(later) or _alike(later)
    if set(block.results) & set(streams):
        return True
    return any(continued(value, block.results) for value in streams)


def _alike(block: Block) -> tuple[fx.Node, ...]:
    """The operands of a result's type, where a block does not add to its stream.

    A block that first joins its stream with that of an earlier block, as in a U-ViT,
    passes both through a product.
    """
    types = {static_type(result) for result in block.results}
    return tuple(n for n in block.operands if static_type(n) in types - {None})


def stream_operands(block: Block) -> tuple[fx.Node, ...]:
    """The operands that the block's results continue, in order of the results."""
    found = (pair(result, block.operands) for result in block.results)
    return tuple(dict.fromkeys(node for node in found if node is not None))


def run_of(graph: fx.Graph, chain: Sequence[Block], head: int, tail: int) -> Run:
    """The run that leaves `head` blocks before it and `tail` after it.

    Args:
        graph: The graph of the blocks.
        chain: The chain of blocks.
        head: Blocks before the run.
        tail: Blocks after it.
    """
    first, last = chain[head], chain[len(chain) - 1 - tail]
    starts = chain[head - 1].results if head else stream_operands(first)
    ends = set(last.results)
    inside = descendants(starts) & ancestors(ends)
    for result in last.results:
        if pair(result, starts) is None:
            inside |= _pieces(result, starts)
    inside |= _own(chain[head : len(chain) - tail], inside)
    nodes = tuple(node for node in graph.nodes if node in inside)
    return Run(
        first.scope.path, last.scope.path, starts, nodes, tuple(results_of(nodes))
    )


def _own(blocks: Sequence[Block], inside: set[fx.Node]) -> set[fx.Node]:
    """What the blocks work out of no stream, such as their modulations, and alone read.

    It belongs to the run, so that a region inside a block lies inside the run as a
    whole.
    """
    found = {
        node
        for block in blocks
        for node in block.nodes
        if node.op == "call_function" and node not in inside
    }
    while True:
        known = inside | found
        stray = {
            node
            for node in found
            if not known.issuperset(node.users)
            or (is_getitem(node) and node.args[0] not in known)
        }
        if not stray:
            return found
        found -= stray


def _pieces(result: fx.Node, starts: Sequence[fx.Node]) -> set[fx.Node]:
    """What a result is rearranged into, up to where it continues a stream.

    A block may give its streams joined into one sequence, or laid out by frames where
    they entered laid out by places; what continues a stream is then the piece that is
    cut out of it, or the sequence as it was.
    """
    found: set[fx.Node] = set()
    pending = [result]
    while pending:
        node = pending.pop()
        readers = list(node.users)
        if all(user.target in REARRANGED or is_getitem(user) for user in readers):
            found.update(readers)
            pending.extend(user for user in readers if pair(user, starts) is None)
    return found
