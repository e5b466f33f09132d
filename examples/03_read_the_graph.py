"""The cache is in the graph, and the graph is text.

Prints one block of the small trained CogVideoX before and after: the gate with both
branches, then the straight-line variant that reuses attention.
"""

from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel

import graphcache
from graphcache.printer import format_plan, format_program

ROOT = Path(__file__).parents[1] / "assets" / "moving-digits"
transformer = CogVideoXTransformer3DModel.from_pretrained(ROOT / "transformer").eval()
config = graphcache.pyramid_attention_broadcast(spatial=2)

program = graphcache.trace(
    transformer,
    config,
    hidden_states=torch.zeros(2, 6, 1, 16, 16),
    encoder_hidden_states=torch.zeros(2, 4, 64),
    timestep=torch.tensor([500, 500]),
    return_dict=False,
)
compute, reuse = graphcache.variants(program, config)

print("THE PLAN")
print(format_plan(program))
for title, shown in (("WITH ITS GATE", program), ("REUSING ATTENTION", reuse)):
    print(f"\n{title}")
    print(format_program(shown, within="transformer_blocks.0"))
sizes = [len(list(variant.graph.nodes)) for variant in (compute, reuse)]
print(f"\nnodes: {sizes[0]} computing, {sizes[1]} reusing")
