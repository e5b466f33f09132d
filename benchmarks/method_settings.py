"""The methods, each at two settings: a gentle one, and one that computes less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.calibrations import Calibrations
from graphcache import (
    FeedForward,
    GuidanceConfig,
    Policy,
    Taylor,
    TaylorResidual,
    dbcache,
    fastercache,
    first_block_cache,
    fora,
    magcache,
    pyramid_attention_broadcast,
    smoothcache,
    step_mask,
    taylorseer,
    teacache,
)
from graphcache.policy import Blocks, Warmed
from graphcache.program import Program

FORMAT = "BFCHW"
"""Of this model's outputs: frames before channels."""


@dataclass(frozen=True)
class Method:
    """One method at one setting.

    Attributes:
        key: For the command line and the results.
        name: Of the method.
        setting: What it was given.
        config: What `graphcache.compile` takes.
    """

    key: str
    name: str
    setting: str
    config: Callable[[Calibrations], object]


METHODS = (
    Method(
        "pab-2",
        "PAB",
        "every 2nd step, 100 < t < 800",
        lambda _: pyramid_attention_broadcast(2),
    ),
    Method(
        "pab-3",
        "PAB",
        "every 3rd step",
        lambda _: pyramid_attention_broadcast(3, window=None),
    ),
    Method(
        "fastercache-2",
        "FasterCache, attention",
        "every 2nd step, t < 681",
        lambda _: fastercache(2),
    ),
    Method(
        "fastercache-4",
        "FasterCache, attention",
        "every 4th step, t < 801",
        lambda _: fastercache(4, window=(-1, 801)),
    ),
    Method(
        "guidance-2",
        "FasterCache, both parts",
        "attention and unconditional half every 2nd step, t < 681 and 641",
        lambda _: fastercache(2, guidance=GuidanceConfig(2, tensor_format=FORMAT)),
    ),
    Method(
        "guidance-3",
        "FasterCache, both parts",
        "attention every 2nd, unconditional half every 3rd step, t < 901",
        lambda _: fastercache(
            2,
            window=(-1, 901),
            guidance=GuidanceConfig(3, (-1, 901), tensor_format=FORMAT),
        ),
    ),
    Method(
        "first-block-0.05",
        "First-block cache",
        "threshold 0.05",
        lambda _: first_block_cache(0.05),
    ),
    Method(
        "first-block-0.1",
        "First-block cache",
        "threshold 0.1",
        lambda _: first_block_cache(0.1),
    ),
    Method(
        "dbcache-1-1",
        "DBCache",
        "F1 B1, threshold 0.08, warm-up 8",
        lambda _: dbcache(1, 1, threshold=0.08),
    ),
    Method(
        "dbcache-1-0",
        "DBCache",
        "F1 B0, threshold 0.12, warm-up 4",
        lambda _: dbcache(1, 0, threshold=0.12, warmup=4),
    ),
    Method(
        "dbcache-taylor-1-1",
        "DBCache, Taylor",
        "F1 B1, threshold 0.08, warm-up 8",
        lambda _: dbcache(1, 1, threshold=0.08, predictor=TaylorResidual()),
    ),
    Method(
        "dbcache-taylor-1-0",
        "DBCache, Taylor",
        "F1 B0, threshold 0.12, warm-up 4",
        lambda _: dbcache(1, 0, threshold=0.12, warmup=4, predictor=TaylorResidual()),
    ),
    Method(
        "teacache-0.06",
        "TeaCache",
        "calibrated, threshold 0.06",
        lambda given: teacache(0.06, given.coefficients),
    ),
    Method(
        "teacache-0.1",
        "TeaCache",
        "calibrated, threshold 0.1",
        lambda given: teacache(0.1, given.coefficients),
    ),
    Method(
        "magcache-0.06",
        "MagCache",
        "calibrated, threshold 0.06, 3 in a row, first 20 %",
        lambda given: magcache(given.ratios),
    ),
    Method(
        "magcache-0.2",
        "MagCache",
        "calibrated, threshold 0.2, 4 in a row, first 10 %",
        lambda given: magcache(given.ratios, threshold=0.2, max_skip=4, retention=0.1),
    ),
    Method(
        "taylorseer-3",
        "TaylorSeer",
        "every 3rd step, order 1",
        lambda _: taylorseer(3),
    ),
    Method(
        "taylorseer-5",
        "TaylorSeer",
        "every 5th step, order 1",
        lambda _: taylorseer(5),
    ),
    Method(
        "taylorseer-lite-3",
        "TaylorSeer lite",
        "every 3rd step, order 1",
        lambda _: taylorseer(3, lite=True),
    ),
    Method(
        "taylorseer-lite-5",
        "TaylorSeer lite",
        "every 5th step, order 1",
        lambda _: taylorseer(5, lite=True),
    ),
    Method("fora-2", "FORA", "every 2nd step", lambda _: fora(2)),
    Method("fora-3", "FORA", "every 3rd step", lambda _: fora(3)),
    Method(
        "smoothcache-0.05",
        "SmoothCache",
        "calibrated, error 0.05",
        lambda given: smoothcache(given.drift.schedule(0.05)),
    ),
    Method(
        "smoothcache-0.1",
        "SmoothCache",
        "calibrated, error 0.1",
        lambda given: smoothcache(given.drift.schedule(0.1)),
    ),
    Method(
        "mask-2",
        "Step mask",
        "first 10, then every 2nd step",
        lambda given: step_mask(sparse(given.steps, 10, 2)),
    ),
    Method(
        "mask-3",
        "Step mask",
        "first 6, then every 3rd step",
        lambda given: step_mask(sparse(given.steps, 6, 3)),
    ),
    Method(
        "mixture-3",
        "Mixture",
        "attention (held) and feed-forward (Taylor) every 3rd step, "
        "last 2 blocks at 2 of 3",
        lambda given: mixture(given.steps, 3, skipped=1),
    ),
    Method(
        "mixture-4",
        "Mixture",
        "attention (held) and feed-forward (Taylor) every 4th step, "
        "last 2 blocks at 2 of 4",
        lambda given: mixture(given.steps, 4, skipped=2),
    ),
)
"""In the order of the table."""


def sparse(steps: int, first: int, every: int) -> list[int]:
    """A mask of the first steps, then every n-th, and the last."""
    return [
        int(step < first or step % every == 0 or step == steps - 1)
        for step in range(steps)
    ]


def mixture(steps: int, every: int, skipped: int) -> Sequence[Policy]:
    """Attention held, feed-forward forecast, and the last blocks left out.

    All compute at multiples of `every`, so that what is held inside the last blocks is
    fresh when they run.

    Args:
        steps: Of the loop.
        every: Attention and feed-forward are computed each n-th step.
        skipped: How many steps before each multiple leave out the blocks after the
            fourth.
    """
    tail = [
        int(step < 2 * every or step % every < every - skipped) for step in range(steps)
    ]
    return (
        *pyramid_attention_broadcast(every, window=None),
        Policy("feed_forward", FeedForward(), Warmed(every, every - 1), Taylor(1)),
        step_mask(tail, Blocks(head=4), name="tail"),
    )


def left_out(scheduler: Any, program: Program) -> dict[str, str]:
    """Methods that cannot apply, and why.

    Args:
        scheduler: The pipeline's.
        program: The transformer, captured and planned.

    Raises:
        RuntimeError: If one of them could apply: it belongs into the table then.
    """
    flows = {region.flow for region in program.regions if region.kind == "attention"}
    if getattr(scheduler, "sigmas", None) is not None or "cross" in flows:
        raise RuntimeError("SeaCache or T-GATE applies to this model: measure it")
    return {
        "SeaCache": "it filters the latents by the noise level of each step, and "
        f"{type(scheduler).__name__} tells none (it has no sigmas)",
        "T-GATE": "it holds cross-attention, and this model has none: text and video "
        f"attend to each other ({' and '.join(sorted(flows))} attention)",
    }
