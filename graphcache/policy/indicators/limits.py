"""Limits: how much may be reused before a step is computed whatever its score.

They are counted in the graph, in one buffer of three numbers: the steps reused in a
row, the steps reused in all, and the sum of the scores since the last computed step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphcache.policy.checks import check_count, check_threshold

_RUN, _REUSED, _DRIFT = range(3)


@dataclass(frozen=True)
class Limits:
    """What may be reused; None does not limit.

    Args:
        run: Steps in a row.
        reused: Steps of the whole loop.
        drift: Sum of the scores of the steps in a row.

    Raises:
        PolicyError: If a number of steps is not positive, or the drift is negative.
    """

    run: int | None = None
    reused: int | None = None
    drift: float | None = None

    def __post_init__(self) -> None:
        if self.run is not None:
            check_count("the most steps reused in a row", self.run, 1)
        if self.reused is not None:
            check_count("the most steps reused in all", self.reused, 1)
        if self.drift is not None:
            check_threshold(self.drift)

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return any(x is not None for x in (self.run, self.reused, self.drift))

    def initial(self, like: Tensor) -> list[Tensor]:
        """The buffer of the counts, if anything is limited."""
        counts = torch.zeros(3, dtype=torch.float32, device=like.device)
        return [counts] if self else []

    def guard(self, score: Tensor, counts: Tensor) -> Tensor:
        """The score, or infinity where a limit is reached: such a score computes."""
        reached = torch.zeros((), dtype=torch.bool, device=counts.device)
        if self.run is not None:
            reached = reached | (counts[_RUN] >= self.run)
        if self.reused is not None:
            reached = reached | (counts[_REUSED] >= self.reused)
        if self.drift is not None:
            reached = reached | (counts[_DRIFT] >= self.drift)
        return score.masked_fill(reached, torch.inf)

    def computed(self, counts: Tensor) -> Tensor:
        """The counts after a computed step: what counts a row starts over."""
        nothing = torch.zeros_like(counts[_RUN])
        return torch.stack([nothing, counts[_REUSED], nothing])

    def reused_after(self, counts: Tensor, score: Tensor) -> Tensor:
        """The counts after a reused step with this score."""
        one = torch.ones_like(counts[_RUN])
        return counts + torch.stack([one, one, score.to(counts.dtype)])
