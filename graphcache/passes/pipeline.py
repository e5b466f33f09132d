"""The whole compiler on one page: what runs, in which order, and why there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from graphcache.passes.conditional import Conditional
from graphcache.passes.dead_code import DeadCode
from graphcache.passes.drop_noops import DropNoops
from graphcache.passes.drop_stores import DropStores
from graphcache.passes.find_regions import FindRegions
from graphcache.passes.insert_gates import InsertGates
from graphcache.passes.manager import Pass
from graphcache.passes.match_layouts import MatchLayouts
from graphcache.passes.observe import Observation, Observe
from graphcache.passes.plan_gates import PlanGates
from graphcache.passes.sink_operands import SinkOperands
from graphcache.passes.specialize import Partial, Specialize
from graphcache.passes.spectral_matmul import SpectralMatmul
from graphcache.policy.policy import Policy


def rewrite_pipeline(
    policies: tuple[Policy, ...], *, dense: bool = False
) -> tuple[Pass, ...]:
    """From source to cached: the cache enters the graph.

    Args:
        policies: In order of precedence.
        dense: Whether buffers are to be filled by another graph as well.
    """
    return (
        # First, so that regions and branches hold only what computes.
        DropNoops(),
        # Before regions are named: a region must not list nodes that die later.
        DeadCode(),
        # Pure tagging: what could be cached.
        FindRegions(),
        # Pure tagging: what will be. Policies are not read after this line.
        PlanGates(policies),
        # The rewrite itself.
        InsertGates(dense),
        # After insertion, when it is known which branch reads what.
        SinkOperands(),
        # Weights that only a removed copy read.
        DeadCode(),
    )


def clean_pipeline() -> tuple[Pass, ...]:
    """A source program without what computes nothing."""
    return (
        DropNoops(),
        DeadCode(),
    )


def observe_pipeline(observation: Observation) -> tuple[Pass, ...]:
    """From source to lowered, without a cache: what a calibration measures."""
    return (
        # As for the cache, so that what is measured is what will be cached.
        DropNoops(),
        DeadCode(),
        # Measurements are told by the regions that they belong to.
        FindRegions(),
        # Nothing is decided, so that this is the lowering as well.
        Observe(observation),
        # Arguments that nothing reads are no interface any more.
        DeadCode(),
    )


def specialize_pipeline(signature: Partial) -> tuple[Pass, ...]:
    """From cached towards lowered: the host's decisions are evaluated."""
    return (
        # Decisions become constants, gates one of their branches.
        Specialize(signature),
        # What only the other branch read: the saving.
        DeadCode(),
    )


def tail_pipeline(signature: Partial) -> tuple[Pass, ...]:
    """What follows a decision of the graph, for one outcome; and the head before it."""
    return (
        # The decision is a constant on this side of the cut.
        Specialize(signature),
        # What the other side reads of the head, too, so that it is not handed over.
        DeadCode(),
    )


def conditional_pipeline() -> tuple[Pass, ...]:
    """From cached to one graph with conditions."""
    return (
        # Needs the operands sunk: what a branch alone reads must not run outside it.
        Conditional(),
    )


def store_pipeline(
    read: frozenset[str], layouts: Mapping[str, Tensor]
) -> tuple[Pass, ...]:
    """Once every variant is lowered: keep only the state that one of them reads."""
    return (
        # Needs all variants, so it cannot stand in the pipeline of any one of them.
        DropStores(read),
        # What only computed a dropped store.
        DeadCode(),
        # Last: what is stored must lie as every variant expects its buffers.
        MatchLayouts(layouts),
    )


def real_pipeline() -> tuple[Pass, ...]:
    """For targets that have neither Fourier transforms nor complex numbers."""
    return (
        # Last of all, and for those targets alone: a transform costs less.
        SpectralMatmul(),
    )
