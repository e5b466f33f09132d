"""FasterCache.

Lv et al., "FasterCache: Training-Free Video Diffusion Model Acceleration with High
Quality", arXiv 2410.19355, and in diffusers as ``FasterCacheConfig``. Two parts:
attention is extrapolated from its last two outputs instead of held, and at most steps
the unconditional half of a batch is not run but predicted from the conditional half.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphcache.errors import PolicyError
from graphcache.policy.checks import check_number, check_window
from graphcache.policy.decisions import Interval, Step
from graphcache.policy.policy import Policy
from graphcache.policy.predictors import LinearExtrapolation, SpectralGuidance
from graphcache.policy.regions import TEMPORAL, Attention
from graphcache.policy.scalars import Scalar

BATCHED = (
    "hidden_states",
    "encoder_hidden_states",
    "timestep",
    "attention_mask",
    "encoder_attention_mask",
)
"""Arguments of a forward that hold the unconditional and the conditional half."""


@dataclass(frozen=True)
class Inside:
    """A number of the step: a weight inside a timestep window, 1 outside.

    Args:
        weight: Inside.
        window: Open at both ends, in the scheduler's units.

    Raises:
        PolicyError: If the weight is not a number from 0, or the window not ordered.
    """

    weight: float
    window: tuple[float, float]

    def __post_init__(self) -> None:
        check_number("the weight of a delta", self.weight, 0, float("inf"))
        check_window(self.window)

    def __call__(self, step: Step) -> float:
        """The number.

        Raises:
            PolicyError: If the timestep is not known.
        """
        if step.timestep is None:
            raise PolicyError(
                f"the window {self.window} needs the timestep of each step, and none "
                "can be had. Pass compile(scheduler=...), or give "
                "cache_context(timestep=...)."
            )
        low, high = self.window
        return self.weight if low < step.timestep < high else 1.0


def low_weight(weight: float = 1.1, window: tuple[float, float] = (99, 901)) -> Scalar:
    """Scales the delta of low frequencies while ``low < timestep < high``."""
    return Scalar("low_weight", Inside(weight, window))


def high_weight(weight: float = 1.1, window: tuple[float, float] = (-1, 301)) -> Scalar:
    """Scales the delta of high frequencies while ``low < timestep < high``."""
    return Scalar("high_weight", Inside(weight, window))


LOW_WEIGHT, HIGH_WEIGHT = low_weight(), high_weight()


@dataclass(frozen=True)
class GuidanceConfig:
    """Predict the unconditional half of the batch at most steps.

    Args:
        every: Run the full batch each n-th step; 1 always runs it.
        window: Predict only while ``low < timestep < high``, in the scheduler's units.
        tensor_format: Layout of the model's output: BCFHW, BFCHW or BCHW.
        low_weight: Scales the delta of low frequencies at each predicted step.
        high_weight: The same for high frequencies.
        arguments: The forward's arguments that hold both halves, unconditional first.

    Raises:
        PolicyError: If the interval is not positive, the window not ordered or the
            format unknown.
    """

    every: int = 5
    window: tuple[float, float] = (-1, 641)
    tensor_format: str = "BCFHW"
    low_weight: Scalar = LOW_WEIGHT
    high_weight: Scalar = HIGH_WEIGHT
    arguments: tuple[str, ...] = BATCHED

    def __post_init__(self) -> None:
        _ = self.decision, self.predictor

    @property
    def decision(self) -> Interval:
        """Where it computes, the full batch runs."""
        return Interval(self.every, self.window)

    @property
    def predictor(self) -> SpectralGuidance:
        """Of the full batch, from the conditional half."""
        return SpectralGuidance(self.tensor_format, self.low_weight, self.high_weight)


def fastercache(
    spatial: int | None = 2,
    temporal: int | None = None,
    *,
    window: tuple[float, float] | None = (-1, 681),
    weight: Scalar | float = 0.5,
    guidance: GuidanceConfig | None = None,
) -> tuple[Policy | GuidanceConfig, ...]:
    """Policies that extrapolate attention, and what is said of guidance.

    Cross-attention is computed at every step.

    Args:
        spatial: Compute self- and joint attention every n-th step; None leaves it.
        temporal: The same for attention over frames, by module path.
        window: Extrapolate only while ``low < timestep < high``, in the scheduler's
            units; None does so at any timestep.
        weight: By which part of their difference to go on from the last two outputs.
            The authors let it rise from 0 to 1 along the loop.
        guidance: How the unconditional half is predicted; attention is then
            extrapolated only where the conditional half runs alone. None for a model
            without a second half: guidance that is distilled, or in calls of its own.

    Raises:
        PolicyError: If there is nothing to do, or a number is out of its range.
    """
    own = ("self", "joint")
    exclude = () if temporal is None else (TEMPORAL,)
    selectors = {
        "spatial": (spatial, Attention(own, exclude=exclude)),
        "temporal": (temporal, Attention(own, include=(TEMPORAL,))),
    }
    policies = tuple(
        Policy(name, regions, Interval(every, window), LinearExtrapolation(weight))
        for name, (every, regions) in selectors.items()
        if every is not None
    )
    if guidance is not None:
        return (*policies, guidance)
    if not policies:
        raise PolicyError("give at least one of spatial=, temporal= and guidance=")
    return policies
