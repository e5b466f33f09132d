"""The rescaling polynomial, for TeaCache.

Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model",
arXiv 2411.19108: the relative L1 change from step to step of what the first block is
given is fitted to that of what the last block gives, by a polynomial over the steps of
all generations together (70 prompts in the paper).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphcache.analysis.view import Analysis
from graphcache.calibration.streams import trunk_stream
from graphcache.calibration.trajectory import Trajectory, span_of
from graphcache.errors import PolicyError
from graphcache.passes.observe import Tensors
from graphcache.policy.checks import check_count
from graphcache.policy.indicators.relative import relative_change
from graphcache.policy.probes import ModulatedInput, Probe, TimestepEmbedding

_INPUT, _OUTPUT = "input", "output"


@dataclass(frozen=True)
class TeaCacheFit:
    """What `graphcache.teacache` needs.

    Attributes:
        coefficients: Of the polynomial, highest power first.
        error: Root mean square of what the polynomial is off, over the pairs.
        pairs: The change of the input and that of the output, for every step of every
            trajectory but its first, in order.
        timestep_only: What the input was, as for `graphcache.teacache`.
        trajectories: How many were measured: one per stream and generation.
    """

    coefficients: list[float]
    error: float
    pairs: list[tuple[float, float]]
    timestep_only: bool
    trajectories: int


@dataclass(frozen=True)
class TeaCacheCalibration:
    """Fit the polynomial of a model.

    Args:
        degree: Of the polynomial.
        timestep_only: Fit the change of what the first block reads of the timestep, not
            of its modulated input.
        residual: Fit it to the change of what all blocks add to the latents' stream,
            which is what is held, not to that of the stream after them.

    Raises:
        PolicyError: If the degree is not a positive integer.
    """

    degree: int = 4
    timestep_only: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        check_count("the degree of the polynomial", self.degree, 1)

    def groups(self, analysis: Analysis) -> Mapping[str, tuple[fx.Node, ...]]:
        """What enters the first block, and what leaves the last.

        Raises:
            PolicyError: If there are no blocks, or nothing to observe of them.
        """
        probe: Probe = TimestepEmbedding() if self.timestep_only else ModulatedInput()
        stream = trunk_stream(analysis, "TeaCache")
        return {
            _INPUT: probe.observe(analysis),
            _OUTPUT: stream if self.residual else stream[1:],
        }

    def initial(self, observed: Tensors) -> Tensors:
        """The value of the step before."""
        return [_value(observed)]

    def measure(self, observed: Tensors, buffers: Tensors) -> tuple[Tensor, Tensors]:
        """The relative L1 change, in fp32, and the value."""
        value, (before,) = _value(observed), buffers
        return relative_change(value.float(), before.float()), [value]

    def report(self, trajectories: Sequence[Trajectory], model: str) -> TeaCacheFit:
        """The fit over the steps of all trajectories.

        Raises:
            PolicyError: If the trajectories differ in length, or there are too few
                steps for the degree.
        """
        span_of(trajectories)
        pairs = [
            pair
            for trajectory in trajectories
            for pair in zip(
                trajectory.changes(_INPUT), trajectory.changes(_OUTPUT), strict=True
            )
        ]
        coefficients = polynomial_fit(pairs, self.degree)
        return TeaCacheFit(
            coefficients,
            _error(coefficients, pairs),
            pairs,
            self.timestep_only,
            len(trajectories),
        )


def _value(observed: Tensors) -> Tensor:
    return observed[0] if len(observed) == 1 else observed[1] - observed[0]


def polynomial_fit(pairs: Sequence[tuple[float, float]], degree: int) -> list[float]:
    """The coefficients of the least-squares polynomial, highest power first.

    As `numpy.polyfit`: in fp64, with columns of unit length, and of several best fits
    the one with the smallest coefficients of those.

    Raises:
        PolicyError: If there are not more pairs than the degree.
    """
    if len(pairs) <= degree:
        raise PolicyError(
            f"a polynomial of degree {degree} needs at least {degree + 1} changes from "
            f"step to step, and {len(pairs)} were measured: give more steps or more "
            "prompts, or a smaller degree"
        )
    x, y = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    powers = torch.linalg.vander(x, N=degree + 1).flip(1)
    lengths = powers.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    # gelsd is the driver that takes columns which depend on one another.
    solved = torch.linalg.lstsq(
        powers / lengths,
        y[:, None],
        rcond=len(pairs) * torch.finfo(torch.float64).eps,
        driver="gelsd",
    )
    found: list[float] = (solved.solution[:, 0] / lengths).tolist()
    return found


def _error(
    coefficients: Sequence[float], pairs: Sequence[tuple[float, float]]
) -> float:
    squares = [(_polynomial(coefficients, x) - y) ** 2 for x, y in pairs]
    return math.sqrt(sum(squares) / len(squares))


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
