"""An engine: the transformer and its cache compiled ahead of time, in one folder.

Exports the small trained model of this repository, loads the engine as a process would
that has neither diffusers nor the model's source, and draws the same clip with it.
"""

import tempfile
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
embeddings = load_file(ROOT / "embeddings.safetensors")["embeddings"]

pipe = CogVideoXPipeline(
    tokenizer=None,
    text_encoder=None,
    vae=None,
    transformer=CogVideoXTransformer3DModel.from_pretrained(ROOT / "transformer"),
    scheduler=CogVideoXDDIMScheduler.from_pretrained(ROOT / "scheduler"),
)
pipe.set_progress_bar_config(disable=True)
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


pipe.transformer = graphcache.compile(
    pipe.transformer,
    graphcache.first_block_cache(0.08),
    backend="eager",  # nothing is compiled for this process: the engine is
    scheduler=pipe.scheduler,
)
expected = generate(7)  # the shapes of this call are what the engine is made for

with tempfile.TemporaryDirectory() as folder:
    # One program with both branches; by default it would be three straight lines.
    path = graphcache.export(
        pipe.transformer, Path(folder) / "digits", lowering="conditional"
    )
    for file in sorted(path.iterdir()):
        print(f"{file.stat().st_size / 1e6:8.2f} MB  {file.name}")

    pipe.transformer = graphcache.load(path, scheduler=pipe.scheduler)
    clip = generate(7)

difference = (clip - expected).abs().max() / expected.abs().max()
print(f"largest difference from the process that exported it: {difference:.0e}")
print(pipe.transformer.cache_stats)
