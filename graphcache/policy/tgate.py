"""T-GATE.

Zhang et al., "Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion
Models", arXiv 2404.02747: the prompt has its say in the first steps. Cross-attention is
computed up to the gate step and its last output held for good; before the gate,
self-attention is computed at an interval, and after it always.

With guidance in one batch the authors also average the two halves at the gate and go on
without the unconditional one. That is a change of the loop and not of the layer, and is
not part of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphcache.errors import PolicyError
from graphcache.policy.checks import check_count
from graphcache.policy.decisions import Ends, Static, Step
from graphcache.policy.policy import Policy
from graphcache.policy.regions import Attention


@dataclass(frozen=True)
class BeforeGate(Static):
    """Compute the first steps, then multiples of an interval, then all from the gate.

    Args:
        gate_step: How many steps compute cross-attention; from the last of them on all
            steps are computed.
        interval: Before that, multiples of it are computed.
        warmup: The last of the first steps.

    Raises:
        PolicyError: If a number is out of its range, or the warm-up ends after the
            gate.
    """

    gate_step: int
    interval: int
    warmup: int

    def __post_init__(self) -> None:
        check_count("the gate step", self.gate_step, 1)
        check_count("the interval of self-attention", self.interval, 1)
        check_count("the warm-up", self.warmup, 0)
        if self.warmup > self.gate_step:
            raise PolicyError(
                f"the warm-up of {self.warmup} steps is longer than the "
                f"{self.gate_step} steps before the gate"
            )

    @property
    def horizon(self) -> int:
        """The gate."""
        return self.gate_step

    @property
    def scheduled(self) -> bool:
        """A function of the place in the schedule."""
        return True

    def computes(self, step: Step) -> bool:
        """Whether the step is a first one, a multiple, or not before the gate."""
        place = step.place
        early = step.index == 0 or place <= self.warmup
        return early or place >= self.gate_step - 1 or place % self.interval == 0


def tgate(
    gate_step: int = 10, interval: int = 5, warmup: int = 2
) -> tuple[Policy, ...]:
    """Policies that hold cross-attention after the gate, self-attention before it.

    Args:
        gate_step: How many first steps of the schedule compute cross-attention.
        interval: Before the gate, self-attention is computed at multiples of this step;
            1 leaves it alone.
        warmup: Self-attention is computed up to this step.

    Raises:
        PolicyError: If a number is out of its range.
    """
    before = BeforeGate(gate_step, interval, warmup)
    cross = Policy("cross", Attention(("cross",)), Ends(gate_step))
    if interval == 1:
        return (cross,)
    own = Policy("self_attention", Attention(("self",)), before, required=False)
    return cross, own
