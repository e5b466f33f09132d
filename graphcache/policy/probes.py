"""Probes: which values of the graph a dynamic decision observes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import fx

from graphcache.analysis.binding import Time
from graphcache.analysis.blocks import Block
from graphcache.analysis.residual import pair
from graphcache.analysis.view import Analysis
from graphcache.errors import PolicyError
from graphcache.policy.checks import check_count


class Probe(Protocol):
    """Finds values in the graph."""

    def observe(self, analysis: Analysis) -> tuple[fx.Node, ...]:
        """The observed values, in the order that the indicator takes them.

        Raises:
            PolicyError: If the graph has none; the message says what was missing.
        """
        ...


def require_chain(analysis: Analysis, least: int, what: str) -> tuple[Block, ...]:
    """The chain of blocks, or an error if it is shorter than `least`."""
    chain = analysis.chain
    if len(chain) < least:
        paths = ", ".join(block.scope.path for block in chain) or "none"
        raise PolicyError(
            f"{what} needs at least {least} blocks in a row, and the graph has "
            f"{len(chain)} ({paths}). A block is a numbered module call, such as "
            "transformer_blocks.3, that holds an attention and works on the latents."
        )
    return chain


@dataclass(frozen=True)
class HeadStream:
    """The latents' stream before and after the first blocks.

    Args:
        blocks: How many blocks the head has.
    """

    blocks: int = 1

    def __post_init__(self) -> None:
        check_count("the number of head blocks", self.blocks, 1)

    def observe(self, analysis: Analysis) -> tuple[fx.Node, ...]:
        """The stream that enters the first block, and the same after the head."""
        chain = require_chain(analysis, self.blocks, "the residual of the head")
        entries = analysis.entries
        for result in chain[self.blocks - 1].results:
            entry = pair(result, entries)
            if entry is not None and analysis.is_hidden(entry):
                return entry, result
        raise PolicyError(
            f"no stream of the latents goes through {chain[0].scope.path}: none of "
            "its results continues what enters it"
        )


@dataclass(frozen=True)
class ModulatedInput:
    """What the first block's attention is given of the latents: normed and modulated.

    The indicator of TeaCache (Liu et al., arXiv 2411.19108).
    """

    def observe(self, analysis: Analysis) -> tuple[fx.Node, ...]:
        """The operand of the first attention that depends on the latents."""
        chain = require_chain(analysis, 1, "the modulated input")
        first = {node.name for node in chain[0].nodes}
        for region in analysis.attention.values():
            if not first.issuperset(region.nodes):
                continue
            for name in region.operands:
                node = analysis.nodes[name]
                if node in analysis.latents:
                    return (node,)
        raise PolicyError(f"{chain[0].scope.path} has no attention on the latents")


@dataclass(frozen=True)
class TimestepEmbedding:
    """What the first block reads that depends on the timestep alone."""

    def observe(self, analysis: Analysis) -> tuple[fx.Node, ...]:
        """The first such operand of the first block."""
        chain = require_chain(analysis, 1, "the timestep embedding")
        for node in chain[0].operands:
            if analysis.times[node] is Time.TIMESTEP:
                return (node,)
        raise PolicyError(
            f"{chain[0].scope.path} reads nothing that depends on the timestep alone"
        )


@dataclass(frozen=True)
class Latents:
    """The argument that is denoised."""

    def observe(self, analysis: Analysis) -> tuple[fx.Node, ...]:
        """The placeholder of the latents."""
        entry = analysis.latents_input
        if entry is None:
            raise PolicyError("the forward takes no tensor")
        return (analysis.nodes[entry.name],)
