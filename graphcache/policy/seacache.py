"""SeaCache.

"SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models", arXiv
2602.18993, and in diffusers as ``SeaCacheConfig``: the latents are filtered to what the
denoiser can tell from noise at this step, and the blocks run when the filtered latents'
changes since they last ran add up to the threshold.
"""

from __future__ import annotations

from graphcache.policy.checks import check_count
from graphcache.policy.decisions import Ends
from graphcache.policy.indicators import SpectralChange
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import HoldResidual, LinearResidual, Predictor
from graphcache.policy.probes import Latents, Probe
from graphcache.policy.regions import Blocks
from graphcache.policy.threshold import Threshold


def seacache(
    threshold: float = 0.25,
    *,
    order: int = 1,
    first: int = 1,
    last: int = 1,
    max_run: int | None = 2,
    power: float = 3.0,
    probe: Probe | None = None,
    steps: int | None = None,
) -> Policy:
    """A policy that stands in for all blocks until the latents have changed enough.

    It needs the noise level of each step, 0 to 1.

    Args:
        threshold: Compute when the changes add up to this.
        order: 0 holds what the blocks added, 1 extrapolates it from the last two.
        first: How many first steps of the schedule are computed.
        last: How many last steps are computed.
        max_run: Most steps reused in a row; None does not limit them.
        power: By which power of the frequency the signal's spectrum falls: 3 for
            video.
        probe: What is observed; None is the first argument of the forward.
        steps: The number of steps, if the loop does not tell it.

    Raises:
        PolicyError: If a number is out of its range.
    """
    check_count("the order of the extrapolation", order, 0, 1)
    predictor: Predictor = LinearResidual() if order else HoldResidual()
    indicator = SpectralChange(probe or Latents(), power, max_run)
    decision = Threshold(indicator, threshold, Ends(first, last, steps))
    return Policy("seacache", Blocks(), decision, predictor)
