"""The same through torch.compile's own door: backend="graphcache".

Runs the real CogVideoXPipeline on the small trained model in this repository. Dynamo
traces the transformer once, and the policy is an option. torch finds the backend by its
name; graphcache is imported here only to look at what happened.
"""

from pathlib import Path

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FirstBlockCacheConfig,
)
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from graphcache.backends.dynamo import statistics, thresholds

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

pipe.transformer = torch.compile(
    pipe.transformer,
    backend="graphcache",
    fullgraph=True,
    options={"config": FirstBlockCacheConfig(threshold=0.1)},
)

cached = generate(7)
print(f"mean difference   {(cached - uncached).abs().mean():.4f} of a range of 2")
print(f"graphs of Dynamo  {counters['stats']['unique_graphs']}")
print(f"graph breaks      {sum(counters['graph_break'].values())}")

# What it did can be asked for, and the threshold can be set while it runs.
print(statistics(pipe.transformer))
thresholds(pipe.transformer)["first_block"] = 0.05
generate(7)
print(f"graphs of Dynamo  {counters['stats']['unique_graphs']}")
