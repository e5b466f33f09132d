"""One compiled transformer for several requests at once.

Each thread is a request of its own; a server that goes from step to step in one thread
names them. Either way each gets what it would get alone, bit for bit, and what it holds
is freed when it ends.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from torch import Tensor

import graphcache
from graphcache import taylorseer

ROOT = Path(__file__).parents[1] / "assets" / "moving-digits"
transformer = CogVideoXTransformer3DModel.from_pretrained(ROOT / "transformer").eval()
compiled = graphcache.compile(transformer, taylorseer(3, before=2), backend="eager")


def request(seed: int) -> Iterator[Tensor]:
    """The latents of a generation, step by step, with a scheduler of its own."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 6, 1, 16, 16, generator=generator)
    prompt = torch.randn(1, 4, 64, generator=generator)
    scheduler = CogVideoXDDIMScheduler.from_pretrained(ROOT / "scheduler")
    scheduler.set_timesteps(8)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = compiled(latents, prompt, t[None]).sample
        latents = scheduler.step(output, t, latents).prev_sample
        yield latents


def last(seed: int) -> Tensor:
    """The latents at the end."""
    *_, latents = request(seed)
    return latents


alone = {}
for seed in (1, 2):
    with compiled.request(f"alone {seed}"):
        alone[seed] = last(seed)

found: dict[int, Tensor] = {}
threads = [
    threading.Thread(target=lambda seed=seed: found.update({seed: last(seed)}))
    for seed in (1, 2)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert all(torch.equal(found[seed], alone[seed]) for seed in (1, 2))
print("two threads: each as alone")

# A scheduler of requests in one thread: both are open, and each step names its own.
steps = {seed: request(seed) for seed in (1, 2)}
with compiled.request(1), compiled.request(2):
    for _ in range(8):
        for seed in (1, 2):
            with compiled.request(seed):
                found[seed] = next(steps[seed])
assert all(torch.equal(found[seed], alone[seed]) for seed in (1, 2))
print("two requests in turn: each as alone")

for record in list(compiled.cache_stats.steps)[-4:]:
    print(record.request, record.stream, record.index, record.computed)
