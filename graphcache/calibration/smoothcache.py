"""Errors of reuse by type of layer, for SmoothCache.

Liu et al., "SmoothCache: A Universal Inference Acceleration Technique for Diffusion
Transformers", arXiv 2411.10510: how far a layer's output is from what it was one, two
and more steps ago is measured by type of layer and step. A scan then lets every
computed output live as long as the error of its type stays within a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphcache.analysis.view import Analysis
from graphcache.calibration.trajectory import Span, Trajectory, mean_of, span_of
from graphcache.errors import PolicyError
from graphcache.passes.observe import Tensors
from graphcache.policy.checks import check_count, check_threshold
from graphcache.policy.smoothcache import (
    KINDS,
    SmoothCacheSchedule,
    layer_type,
    layers_of,
)

Table = list[list[float]]
"""By step and lag; rows near the end are shorter, and empty where nothing was seen."""


@dataclass(frozen=True)
class SmoothCacheErrors:
    """How far outputs of layers drift, and of which model that is true.

    Attributes:
        errors: By type of layer: ``errors[type][i][lag - 1]`` is the relative L1 error
            of reusing the outputs of step ``i`` at step ``i + lag``, the mean over the
            layers of the type and over all trajectories.
        model: Name of the class of the model.
        layers: By type, how many layers it has.
        trajectories: How many were averaged: one per stream and generation.
    """

    errors: dict[str, Table]
    model: str
    layers: dict[str, int]
    trajectories: int

    def schedule(self, alpha: float) -> SmoothCacheSchedule:
        """A schedule for `graphcache.smoothcache`.

        A computed output is reused for as many steps as the error at the longest lag
        within the bound allows. The first and the last step are computed.

        Args:
            alpha: The bound of the error.

        Raises:
            PolicyError: If it is negative or not a number.
        """
        check_threshold(alpha)
        rows = {kind: _scan(table, alpha) for kind, table in self.errors.items()}
        return SmoothCacheSchedule(rows, self.model, self.layers)


def _scan(table: Table, alpha: float) -> list[int]:
    computed = [1] * len(table)
    step = 0
    while step < len(table):
        within = [lag for lag, error in enumerate(table[step], 1) if error <= alpha]
        last = step + max(within, default=0)
        computed[step + 1 : last + 1] = [0] * (last - step)
        step = last + 1
    computed[-1] = 1
    return computed


@dataclass(frozen=True)
class SmoothCacheCalibration:
    """Measure the errors of a model.

    Args:
        lags: Over how many steps an output may be reused, at most. As many outputs of
            every layer are held while it is measured.

    Raises:
        PolicyError: If the number is not positive.
    """

    lags: int = 3

    def __post_init__(self) -> None:
        check_count("the number of lags", self.lags, 1)

    def groups(self, analysis: Analysis) -> Mapping[str, tuple[fx.Node, ...]]:
        """The outputs of each layer, by the layer's name.

        Raises:
            PolicyError: If there are no layers.
        """
        found = {
            region.name: tuple(analysis.nodes[name] for name in region.results)
            for region in analysis.regions
            if region.kind in KINDS
        }
        if not found:
            raise PolicyError(
                "SmoothCache needs layers, and the graph holds neither attention nor "
                "feed-forward inside a block. A block is a numbered module call, such "
                "as transformer_blocks.3, that holds an attention."
            )
        return found

    def initial(self, observed: Tensors) -> Tensors:
        """The outputs of the last steps, the latest first."""
        return [*observed] * self.lags

    def measure(self, observed: Tensors, buffers: Tensors) -> tuple[Tensor, Tensors]:
        """The error at every lag, f32[lags], and the outputs."""
        size = len(observed)
        held = [buffers[i * size : (i + 1) * size] for i in range(self.lags)]
        errors = torch.stack([_error(outputs, observed) for outputs in held])
        return errors, [*observed, *buffers[:-size]]

    def report(
        self, trajectories: Sequence[Trajectory], model: str
    ) -> SmoothCacheErrors:
        """The mean errors.

        Raises:
            PolicyError: If the trajectories differ in length or in their layers.
        """
        span = span_of(trajectories)
        layers = dict(layers_of(trajectories[0].program.regions))
        if any(dict(layers_of(t.program.regions)) != layers for t in trajectories):
            raise PolicyError("the model has not the same layers at every call")
        tables = [_by_type(trajectory, span, self.lags) for trajectory in trajectories]
        errors = {kind: _mean([table[kind] for table in tables]) for kind in layers}
        return SmoothCacheErrors(errors, model, layers, len(trajectories))


def _error(held: Tensors, now: Tensors) -> Tensor:
    """The relative L1 error, in fp32; 0 where nothing has changed, zeros included."""
    pairs = zip(held, now, strict=True)
    gap = torch.stack([(a.float() - b.float()).abs().sum() for a, b in pairs]).sum()
    total = torch.stack([value.float().abs().sum() for value in now]).sum()
    return torch.where(gap == 0, gap, gap / total)


def _by_type(trajectory: Trajectory, span: Span, lags: int) -> dict[str, Table]:
    """By type of layer, the mean over its layers."""
    tables: dict[str, list[Table]] = {}
    for name in trajectory.steps[0]:
        kind = layer_type(trajectory.program.region(name))
        measured = [step[name].tolist() for step in trajectory.steps]
        tables.setdefault(kind, []).append(_table(measured, lags))
    before: Table = [[] for _ in range(span.begin)]
    after: Table = [[] for _ in range(span.end)]
    return {kind: [*before, *_mean(own), *after] for kind, own in tables.items()}


def _table(measured: Table, lags: int) -> Table:
    """What each step measured of those before it, by the step that was reused."""
    return [
        [later[lag] for lag, later in enumerate(measured[step + 1 : step + 1 + lags])]
        for step in range(len(measured))
    ]


def _mean(tables: Sequence[Table]) -> Table:
    return [mean_of(rows) for rows in zip(*tables, strict=True)]
