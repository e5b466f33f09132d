"""Some methods have to know the model: measure it, then cache by what was found.

Two digits are generated uncached with a drop-in that measures every step. MagCache is
given the ratios, and the schedule that follows from them draws a third digit.
"""

from pathlib import Path

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from safetensors.torch import load_file

import graphcache

ROOT = Path(__file__).parents[1] / "assets" / "moving-digits"
STEPS = 30
embeddings = load_file(ROOT / "embeddings.safetensors")["embeddings"]
transformer = CogVideoXTransformer3DModel.from_pretrained(ROOT / "transformer").eval()
pipe = CogVideoXPipeline(
    tokenizer=None,
    text_encoder=None,
    vae=None,
    transformer=transformer,
    scheduler=CogVideoXDDIMScheduler.from_pretrained(ROOT / "scheduler"),
)
pipe.set_progress_bar_config(disable=True)


def generate(module: torch.nn.Module, digit: int) -> torch.Tensor:
    """One clip, with this module as the pipeline's transformer."""
    pipe.transformer = module
    return pipe(
        prompt_embeds=embeddings[digit : digit + 1],
        negative_prompt_embeds=embeddings[10:],
        height=128,
        width=128,
        num_frames=21,
        num_inference_steps=STEPS,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(digit),
        output_type="latent",
    ).frames


def measure(module: torch.nn.Module) -> None:
    """Generate what the model is measured on."""
    for digit in (3, 8):
        generate(module, digit)


found = graphcache.calibrate(transformer, "magcache", measure)
ratios = " ".join(f"{ratio:.2f}" for ratio in found.ratios)
print(f"magnitude ratios  mean of {found.trajectories} generations\n{ratios}")

uncached = generate(transformer, 7)
policy = graphcache.magcache(found.ratios, threshold=0.24)
compiled = graphcache.compile(transformer, policy, backend="eager")
cached = generate(compiled, 7)
steps = compiled.cache_stats.steps
print("steps computed   ", "".join(".#"[step.computed["magcache"]] for step in steps))
print(f"mean difference   {(cached - uncached).abs().mean():.4f} of a range of 2")
