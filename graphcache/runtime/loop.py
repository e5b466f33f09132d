"""The loop: everything that the steps of one kind of call may run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from graphcache.capture.outputs import OutputTree
from graphcache.capture.writes import Write
from graphcache.errors import PolicyError
from graphcache.passes.join_guidance import PREDICATE as GUIDANCE
from graphcache.policy.decisions import Decision, Mask, Signature, Step
from graphcache.policy.threshold import Comparison
from graphcache.program import TensorType
from graphcache.rewriting import refuse_halves_in_turn
from graphcache.runtime.hoisted import HoistedDecision
from graphcache.runtime.loops import ReadValues
from graphcache.runtime.segment import Route


@dataclass(frozen=True)
class Loop:
    """What one capture has become.

    Attributes:
        predicates: Names of the policies that it obeys, in order of first use.
        routes: What to run, by the decisions of the host, in the order of `host`.
        host: Predicates that are decided before the step.
        decisions: The static decisions, by policy name.
        hoisted: The decisions that the timestep determines, by policy name.
        forced: For the decisions of the graph: when they are not asked.
        rules: For the decisions of the graph: how a score is compared.
        regions: Names of the gated regions, by policy name.
        enclosing: Per region of a policy, the other policies whose regions lie around
            it.
        arguments: The tensor arguments as captured, by path.
        device: Where the graph's numbers are made.
        scale: By what the timestep argument is multiplied to be in the scheduler's
            units.
        output: What the module returns with ``return_dict=False``.
        named: What it returns with ``return_dict=True``.
        values: The arguments whose values were compiled in.
        writes: What the module writes to the containers that it is given.
    """

    predicates: tuple[str, ...]
    routes: Mapping[Signature, Route]
    host: tuple[str, ...]
    decisions: Mapping[str, Decision]
    hoisted: Mapping[str, HoistedDecision]
    forced: Mapping[str, Decision]
    rules: Mapping[str, Comparison]
    regions: Mapping[str, tuple[str, ...]]
    enclosing: Mapping[str, tuple[frozenset[str], ...]]
    arguments: Mapping[str, TensorType]
    device: torch.device
    scale: float
    output: OutputTree
    named: OutputTree
    values: ReadValues
    writes: tuple[Write, ...]

    def flags(self, step: Step, *, compute_all: bool) -> dict[str, bool]:
        """The host's decisions at a step, and which of the graph's are forced.

        Args:
            step: Where the loop is; everything is computed where the buffers are empty.
            compute_all: Compute everything, whatever the policies say.
        """
        every = compute_all or step.fresh
        flags = {
            name: every or decision.computes(step)
            for name, decision in {**self.decisions, **self.forced}.items()
        }
        # The graph of the full batch computes everything.
        return dict.fromkeys(flags, True) if flags.get(GUIDANCE) else flags

    def route(self, flags: Mapping[str, bool]) -> Route:
        """What to run under the host's decisions."""
        return self.routes[tuple(flags[name] for name in self.host)]

    def computed(self, decisions: Mapping[str, bool]) -> dict[str, int]:
        """How many regions of each policy were computed.

        A region inside another policy's is not, if that one is reused.
        """
        return {
            name: sum(
                decisions[name] and all(decisions[other] for other in around)
                for around in self.enclosing[name]
            )
            for name in self.predicates
        }

    def check(self, step: Step, context: str | None) -> None:
        """Refuse a loop that a policy was not made for.

        Args:
            step: The first step, or the first after a change.
            context: Name of the caller's context, if there is one.

        Raises:
            PolicyError: If a schedule is for another number of steps, or guidance in a
                batch is to be predicted and its halves are called in turn.
        """
        if GUIDANCE in self.predicates:
            refuse_halves_in_turn(context)
        early = (hoisted.forced for hoisted in self.hoisted.values())
        for decision in (*self.decisions.values(), *self.forced.values(), *early):
            decision.check(step.count)

    def check_call(self, step: Step) -> None:
        """Refuse a call that a policy for a part of the loop was not made for.

        A schedule for fewer steps than the loop has is for one of several models that
        share it. That this one sees more shows when the schedule is over, or at its
        first call if that is in the middle of the loop.

        Args:
            step: Any step.

        Raises:
            PolicyError: If the model sees another number of steps.
        """
        for mask in self.counting:
            if step.count is None or not mask.is_part(step.count):
                continue
            begin = step.place - step.index
            over = step.index == len(mask.computed)
            if over or (begin and step.count - begin != mask.steps):
                raise PolicyError(
                    f"the schedule is for {mask.steps} steps and the loop has "
                    f"{step.count}, and the model is called at step {step.place} for "
                    f"the {step.index + 1}. time: calibrate again, or make the "
                    "schedule for the number of steps that this model sees"
                )

    @cached_property
    def counting(self) -> tuple[Mask, ...]:
        """The decisions that count the calls of this model alone."""
        early = (hoisted.forced for hoisted in self.hoisted.values())
        rules = (*self.decisions.values(), *self.forced.values(), *early)
        return tuple(rule for rule in rules if isinstance(rule, Mask) and rule.own)
