"""Magnitude ratios, for MagCache.

Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache", arXiv
2506.09045. The arithmetic is that of diffusers' ``MagCacheConfig(calibrate=True)``: of
what all blocks add to the latents' stream, the norm of each token's vector over that of
the step before, and the mean of this over the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphcache.analysis.view import Analysis
from graphcache.calibration.streams import trunk_stream
from graphcache.calibration.trajectory import Span, Trajectory, mean_of, span_of
from graphcache.passes.observe import Tensors

# As in diffusers: no token's vector is divided by zero.
_TINY = 1e-8
_RATIO = "ratio"


@dataclass(frozen=True)
class MagCacheRatios:
    """What `graphcache.magcache` and diffusers' ``MagCacheConfig`` need.

    Attributes:
        ratios: One per step of the schedule, the mean over all trajectories; 1 at the
            first step, and at steps of the schedule at which the model was not called.
        streams: The same of each stream alone, by its name.
        trajectories: How many were averaged: one per stream and generation.
    """

    ratios: list[float]
    streams: dict[str, list[float]]
    trajectories: int


@dataclass(frozen=True)
class MagCacheCalibration:
    """Measure the magnitude ratios of a model."""

    def groups(self, analysis: Analysis) -> Mapping[str, tuple[fx.Node, ...]]:
        """The latents' stream before and after all blocks.

        Raises:
            PolicyError: If there are no blocks, or the stream does not go through.
        """
        return {_RATIO: trunk_stream(analysis, "MagCache")}

    def initial(self, observed: Tensors) -> Tensors:
        """What the blocks added at the step before."""
        before, after = observed
        return [after - before]

    def measure(self, observed: Tensors, buffers: Tensors) -> tuple[Tensor, Tensors]:
        """The ratio, in fp32, and what the blocks added."""
        (before, after), (earlier,) = observed, buffers
        added = after - before
        norms = [torch.linalg.norm(x.float(), dim=-1) for x in (added, earlier)]
        return (norms[0] / (norms[1] + _TINY)).mean(), [added]

    def report(self, trajectories: Sequence[Trajectory], model: str) -> MagCacheRatios:
        """The mean ratios.

        Raises:
            PolicyError: If the trajectories differ in length.
        """
        span = span_of(trajectories)
        rows: dict[str, list[list[float]]] = {}
        for trajectory in trajectories:
            rows.setdefault(trajectory.stream, []).append(_ratios(trajectory, span))
        return MagCacheRatios(
            ratios=mean_of([row for own in rows.values() for row in own]),
            streams={stream: mean_of(own) for stream, own in rows.items()},
            trajectories=len(trajectories),
        )


def _ratios(trajectory: Trajectory, span: Span) -> list[float]:
    measured = trajectory.changes(_RATIO)
    return [1.0] * (span.begin + 1) + measured + [1.0] * span.end
