"""The drop-in in diffusers' own, unmodified CogVideoXPipeline, on trained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    PyramidAttentionBroadcastConfig,
)
from safetensors.torch import load_file
from torch import Tensor, nn

import graphcache
from graphcache import never_reuse

ROOT = Path(__file__).parents[1] / "assets" / "moving-digits"
EMBEDDINGS = load_file(ROOT / "embeddings.safetensors")["embeddings"]


def pipeline(change: Callable[[Any], nn.Module] | None = None) -> Any:
    """A pipeline whose transformer is what `change` makes of it."""
    pipe = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=CogVideoXTransformer3DModel.from_pretrained(
            ROOT / "transformer"
        ).eval(),
        scheduler=CogVideoXDDIMScheduler.from_pretrained(ROOT / "scheduler"),
    )
    pipe.set_progress_bar_config(disable=True)
    if change is not None:
        pipe.transformer = change(pipe)
    return pipe


def generate(pipe: Any, steps: int = 12, clips: int = 1, **kwargs: Any) -> Tensor:
    """f32[clips, 6, 1, 16, 16]."""
    noise = torch.randn(clips, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    frames: Tensor = pipe(
        prompt_embeds=EMBEDDINGS[:clips],
        negative_prompt_embeds=EMBEDDINGS[10:].expand(clips, -1, -1),
        height=128,
        width=128,
        num_frames=21,
        num_inference_steps=steps,
        guidance_scale=2.5,
        latents=noise,
        output_type="latent",
        **kwargs,
    ).frames
    return frames


def config(pipe: Any, callback: bool = True) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=(lambda: pipe.current_timestep) if callback else None,
    )


def ours(pipe: Any, **kwargs: Any) -> nn.Module:
    return graphcache.compile(pipe.transformer, config(pipe), backend="eager", **kwargs)


def theirs(pipe: Any) -> nn.Module:
    pipe.transformer.enable_cache(config(pipe))
    return pipe.transformer


@pytest.fixture(scope="module")
def cached() -> Any:
    return pipeline(ours)


@pytest.fixture(scope="module")
def hooked() -> Any:
    return pipeline(theirs)


def test_is_diffusers_hooks_bit_for_bit(cached: Any, hooked: Any) -> None:
    expected = generate(hooked)
    assert torch.equal(generate(cached), expected)
    assert torch.equal(generate(cached), expected)
    assert cached.transformer.cache_stats.captures == 1
    assert not torch.equal(expected, generate(pipeline()))


def test_other_steps_and_other_shapes(cached: Any, hooked: Any) -> None:
    for steps, clips in ((7, 1), (20, 1), (6, 2), (12, 1)):
        expected = generate(hooked, steps, clips)
        assert torch.equal(generate(cached, steps, clips), expected)


@pytest.mark.parametrize("interrupted_at", [0, 1, 6])
def test_an_exception_in_the_loop_leaves_nothing_behind(
    cached: Any, hooked: Any, interrupted_at: int
) -> None:
    def interrupt(pipe: Any, step: int, timestep: Any, values: Any) -> Any:
        if step == interrupted_at:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        generate(cached, clips=1, callback_on_step_end=interrupt)
    hooked.transformer._reset_stateful_cache()
    assert torch.equal(generate(cached), generate(hooked))


def test_the_pipeline_frees_the_buffers(cached: Any) -> None:
    generate(cached)
    assert cached.transformer._graphcache_runner.clock.streams == {}
    stats = cached.transformer.cache_stats
    assert stats.peak_buffer_bytes >= stats.planned_bytes > 0


def test_without_a_callback(hooked: Any) -> None:
    expected = generate(hooked)
    pipe = pipeline(
        lambda pipe: graphcache.compile(
            pipe.transformer, config(pipe, callback=False), backend="eager"
        )
    )
    assert torch.equal(generate(pipe), expected)
    pipe = pipeline(
        lambda pipe: graphcache.compile(
            pipe.transformer,
            config(pipe, callback=False),
            backend="eager",
            scheduler=pipe.scheduler,
        )
    )
    assert torch.equal(generate(pipe), expected)


def test_never_reuse_is_the_uncached_pipeline() -> None:
    pipe = pipeline(
        lambda pipe: graphcache.compile(
            pipe.transformer, never_reuse(), backend="reference"
        )
    )
    assert torch.equal(generate(pipe), generate(pipeline()))


def test_the_pipeline_sees_the_transformer_it_had(cached: Any, tmp_path: Path) -> None:
    assert isinstance(cached.transformer, CogVideoXTransformer3DModel)
    assert cached.config.transformer == pipeline().config.transformer
    cached.transformer.save_pretrained(tmp_path)
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path)
    weights = again.state_dict()
    for name, value in cached.transformer.state_dict().items():
        assert torch.equal(weights[name], value)


def test_no_second_copy_of_the_weights(cached: Any) -> None:
    generate(cached)
    transformer = cached.transformer
    own = {tensor.data_ptr() for tensor in transformer.state_dict().values()}
    own |= {tensor.data_ptr() for tensor in transformer.buffers()}
    loops = transformer._graphcache_runner.loops
    for variant in (v for loop in loops for v in loop.routes.values()):
        assert {tensor.data_ptr() for tensor in variant.weights.read()} <= own
        assert variant.fixed == ()
