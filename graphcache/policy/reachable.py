"""Which combinations a set of static decisions can ever say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise, product

from graphcache.policy.decisions import Decision, Signature, Step


def reachable_signatures(decisions: Mapping[str, Decision]) -> tuple[Signature, ...]:
    """Every combination the decisions can produce, the all-compute one first.

    Exact for decisions that keep the contract of `Decision`: beyond the last horizon
    everything repeats after the least common multiple of the periods, between two
    neighbouring edges any timestep stands for all others, and the schedule may end
    anywhere. Decisions that count by the schedule and those that count by calls may be
    out of step with each other, in a loop that begins in the middle, so that each
    kind's combinations meet all of the other's.
    """
    parties = tuple(decisions.values())
    found = {(True,) * len(parties): None}
    both = [_said(parties, scheduled) for scheduled in (False, True)]
    for calls, schedule in product(*both):
        signature = tuple(
            schedule[i] if party.scheduled else calls[i]
            for i, party in enumerate(parties)
        )
        found[signature] = None
    return tuple(found)


def _said(parties: tuple[Decision, ...], scheduled: bool) -> list[Signature]:
    """What the decisions of one kind of counting say together; others are True."""
    own = [party for party in parties if party.scheduled == scheduled]
    start = max((party.horizon for party in own), default=0)
    end = start + math.lcm(*(party.period for party in own))
    found = {
        tuple(party not in own or party.computes(step) for party in parties): None
        for index in range(1, end + 1)
        for step in _representative_steps(index, own)
    }
    return list(found)


def _representative_steps(index: int, decisions: list[Decision]) -> list[Step]:
    closing = max((decision.closing for decision in decisions), default=0)
    counts = [index + left for left in range(1, closing + 2)]
    return [
        Step(index, timestep, count=count)
        for timestep, count in product(_representative_times(decisions), counts)
    ]


def _representative_times(decisions: list[Decision]) -> list[float]:
    found = {float(edge) for decision in decisions for edge in decision.edges}
    # An end that no timestep reaches tells none from another.
    edges = sorted(edge for edge in found if math.isfinite(edge))
    if not edges:
        return [0.0]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return [edges[0] - 1.0, *edges, *middles, edges[-1] + 1.0]
