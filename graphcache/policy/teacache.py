"""TeaCache.

Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model",
arXiv 2411.19108: the change of the first block's modulated input, rescaled by a
polynomial that was fitted to the model, estimates that of the output. The blocks run
when the changes since they last ran add up to the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphcache.policy.decisions import Ends
from graphcache.policy.indicators import AccumulatedChange
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import HoldResidual
from graphcache.policy.probes import ModulatedInput, Probe, TimestepEmbedding
from graphcache.policy.regions import Blocks
from graphcache.policy.threshold import Threshold


def teacache(
    threshold: float,
    coefficients: Sequence[float] = (1.0, 0.0),
    *,
    timestep_only: bool = False,
    absolute: bool = False,
    last: bool = True,
    steps: int | None = None,
) -> Policy:
    """A policy that holds what all blocks add until their input has changed enough.

    Args:
        threshold: Compute when the rescaled changes add up to this.
        coefficients: Of the polynomial, highest power first. They belong to one model
            and to what is observed; (1, 0) rescales nothing.
        timestep_only: Observe what the first block reads of the timestep, not its
            modulated input.
        absolute: Whether to add the polynomial's absolute value.
        last: Whether the last step is always computed, as the first is; where the loop
            does not tell its number of steps, it is a step like the others.
        steps: The number of steps, if the loop does not tell it.

    Raises:
        PolicyError: If the threshold is negative or not a number, or the coefficients
            are not finite numbers.
    """
    probe: Probe = TimestepEmbedding() if timestep_only else ModulatedInput()
    indicator = AccumulatedChange(probe, tuple(coefficients), absolute)
    ends = Ends(first=1, last=int(last), steps=steps, lenient=True)
    return Policy(
        "teacache", Blocks(), Threshold(indicator, threshold, ends), HoldResidual()
    )
