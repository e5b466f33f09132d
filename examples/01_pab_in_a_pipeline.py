"""One line turns diffusers' Pyramid Attention Broadcast into a compiled graph.

Runs the real CogVideoXPipeline on the small trained model in this repository, without
any download, and compares the clip with the uncached one.
"""

from pathlib import Path

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    PyramidAttentionBroadcastConfig,
)
from safetensors.torch import load_file

import graphcache

ROOT = Path(__file__).parents[1] / "assets" / "moving-digits"
embeddings = load_file(ROOT / "embeddings.safetensors")["embeddings"]

pipe = CogVideoXPipeline(
    tokenizer=None,
    text_encoder=None,
    vae=None,
    transformer=CogVideoXTransformer3DModel.from_pretrained(ROOT / "transformer"),
    scheduler=CogVideoXDDIMScheduler.from_pretrained(ROOT / "scheduler"),
)
pipe.transformer.eval()


def generate(digit: int) -> torch.Tensor:
    """One clip: f32[1, 6 frames, 1, 16, 16]."""
    return pipe(
        prompt_embeds=embeddings[digit : digit + 1],
        negative_prompt_embeds=embeddings[10:],
        height=128,
        width=128,
        num_frames=21,
        num_inference_steps=50,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


uncached = generate(7)

config = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(100, 800),
)
graphcache.compile(pipe, config)  # the one line

cached = generate(7)
print(f"mean difference: {(cached - uncached).abs().mean():.4f} of a range of 2")
print(graphcache.summary(pipe))
