"""The inductor backend: same numbers, no Dynamo, nothing compiled later."""

from __future__ import annotations

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig

import graphcache
from graphcache import BackendError, pyramid_attention_broadcast
from tests.models import run_loop, timesteps, tiny, tiny_inputs

PAB = pyramid_attention_broadcast(spatial=2, cross=3)


def test_unknown_options_are_refused() -> None:
    subject = graphcache.compile(tiny(), PAB[:1], options={"no_such_option": 1})
    with torch.no_grad(), pytest.raises(BackendError, match="no option no_such_option"):
        subject(**tiny_inputs())


def test_replayed_memory_is_refused() -> None:
    options = {"triton.cudagraphs": True}
    subject = graphcache.compile(tiny(), PAB[:1], options=options)
    with torch.no_grad(), pytest.raises(BackendError, match="overwrites its outputs"):
        subject(**tiny_inputs())


def compilations() -> tuple[int, int]:
    """Frames and graphs that Dynamo and Inductor have seen so far."""
    counters = torch._dynamo.utils.counters
    inductor = counters["inductor"]
    graphs = inductor["fxgraph_cache_hit"] + inductor["fxgraph_cache_miss"]
    return sum(counters["frames"].values()), graphs


@pytest.mark.slow
def test_agrees_with_eager_and_never_recompiles() -> None:
    """Fifty steps, two generations, two streams, with and without contexts."""
    eager = graphcache.compile(tiny(cross=True), PAB, backend="eager")
    subject = graphcache.compile(
        tiny(cross=True), PAB, example_inputs=tiny_inputs(), progress=False
    )
    assert subject.cache_stats.graphs_compiled == 4  # as many as can be reached
    compiled = compilations()
    for seed in (1, 2):
        runs = [run_loop(side, 50, seed=seed) for side in (subject, eager)]
        for got, want in zip(*runs, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for side in (subject, eager):
        side._reset_stateful_cache()
    for generation in (1, 2):
        for timestep in timesteps(50):
            inputs = tiny_inputs(timestep, seed=generation)
            for stream in ("cond", "uncond"):
                both = []
                for side in (subject, eager):
                    with torch.no_grad(), side.cache_context(stream):
                        both.append(side(**inputs)[0])
                torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)
    assert subject.cache_stats.steps == eager.cache_stats.steps
    assert len(subject.cache_stats.steps) == 300
    assert subject.cache_stats.graphs_compiled == 4
    assert compilations() == compiled
    assert not torch._dynamo.utils.counters["graph_break"]
    stats = subject.cache_stats
    assert stats.peak_buffer_bytes == 2 * stats.planned_bytes


@pytest.mark.slow
def test_a_callback_changes_nothing_of_that() -> None:
    now = [0.0]
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: now[0],
    )
    subject = graphcache.compile(
        tiny(), config, example_inputs=tiny_inputs(), progress=False
    )
    compiled = compilations()
    with torch.no_grad():
        for timestep in timesteps(50) * 2:
            now[0] = timestep
            subject(**tiny_inputs(timestep))
    assert subject.cache_stats.graphs_compiled == 2
    assert compilations() == compiled
    assert subject.cache_stats.reused["spatial"] > 0


@pytest.mark.slow
def test_bfloat16() -> None:
    module = tiny().to(torch.bfloat16)
    inputs = {k: v.to(torch.bfloat16) for k, v in tiny_inputs(500).items()}
    subject = graphcache.compile(module, PAB[:1], progress=False)
    with torch.no_grad():
        want = module(**inputs)[0]
        torch.testing.assert_close(subject(**inputs)[0], want, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    module = tiny(cross=True).cuda()
    inputs = {k: v.cuda() for k, v in tiny_inputs(500).items()}
    subject = graphcache.compile(module, PAB, progress=False)
    eager = graphcache.compile(module, PAB, backend="eager")
    with torch.no_grad():
        for timestep in (900.0, 700.0, 600.0, 500.0):
            inputs["timestep"] = torch.full_like(inputs["timestep"], timestep)
            pair = subject(**inputs)[0], eager(**inputs)[0]
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)
    # One read of the timestep argument a step, and no other.
    assert subject.cache_stats.device_reads == 4
