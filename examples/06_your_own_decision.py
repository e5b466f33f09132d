"""A dynamic decision of your own: the graph decides, and nothing is compiled twice.

The blocks after the first are reused while the latents have moved less than a
threshold since they last ran. The threshold is an input: it is changed between two
generations, and no graph is compiled for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

import graphcache
from graphcache import Blocks, HoldResidual, Policy, Threshold
from graphcache.policy import Scalar
from graphcache.policy.probes import Latents, Probe

ROOT = Path(__file__).parents[1] / "assets" / "moving-digits"
transformer = CogVideoXTransformer3DModel.from_pretrained(ROOT / "transformer").eval()


@dataclass(frozen=True)
class Drift:
    """How far the latents have moved since the last computed step, relative L1."""

    probe: Probe = field(default_factory=Latents)
    inclusive: bool = False
    scalars: tuple[Scalar, ...] = ()

    def initial(self, observed: Sequence[Tensor]) -> Sequence[Tensor]:
        """One buffer: the latents of the last computed step."""
        return observed

    def measure(
        self,
        observed: Sequence[Tensor],
        buffers: Sequence[Tensor],
        scalars: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """The score, and the latents."""
        (now,), (then,) = observed, buffers
        return [(now - then).abs().mean() / then.abs().mean(), now]

    def update(
        self, measured: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Remember the latents of a computed step."""
        return measured[1:]

    def carry(
        self, measured: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Keep them at a reused one."""
        return buffers


policy = Policy("tail", Blocks(head=1), Threshold(Drift(), 0.05), HoldResidual())
compiled = graphcache.compile(transformer, policy, backend="eager")


def generate() -> str:
    """One loop; which steps computed the tail."""
    latents = torch.randn(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    compiled.cache_stats.clear()
    with torch.no_grad():
        for timestep in torch.linspace(999, 0, 30):
            (velocity,) = compiled(
                hidden_states=latents,
                encoder_hidden_states=torch.zeros(2, 4, 64),
                timestep=timestep.expand(2),
                return_dict=False,
            )
            latents = latents - 0.02 * velocity
    compiled._reset_stateful_cache()
    steps = compiled.cache_stats.steps
    return "".join("#" if record.computed["tail"] else "." for record in steps)


for threshold in (0.0, 0.05, 0.1):
    compiled.cache_thresholds["tail"] = threshold
    line = generate()
    stats = compiled.cache_stats
    print(f"{threshold:.2f} {line} graphs: {stats.graphs_compiled}")
print(f"scores read in the last generation: {compiled.cache_stats.host_reads}")
