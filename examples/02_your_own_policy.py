"""A policy is regions x decision x predictor: write your own.

Here the first two blocks are recomputed at every second step at any timestep, and all
others at every fourth step in the middle of the loop.
"""

from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel

import graphcache
from graphcache import Attention, Interval, Policy

ROOT = Path(__file__).parents[1] / "assets" / "moving-digits"
transformer = CogVideoXTransformer3DModel.from_pretrained(ROOT / "transformer").eval()

policies = [
    Policy("early", Attention(include=(r"blocks\.[01]\.",)), Interval(2)),
    Policy("late", Attention(), Interval(4, window=(100, 800))),
]
compiled = graphcache.compile(transformer, policies, backend="eager")

latents = torch.randn(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    for timestep in torch.linspace(999, 0, 20):
        (velocity,) = compiled(
            hidden_states=latents,
            encoder_hidden_states=torch.zeros(2, 4, 64),
            timestep=timestep.expand(2),
            return_dict=False,
        )
        latents = latents - 0.05 * velocity

for policy in policies:
    line = "".join(
        "#" if record.computed[policy.name] else "."
        for record in compiled.cache_stats.steps
    )
    print(f"{policy.name:6s} {line}  {compiled.cache_stats.regions[policy.name]}")
