"""The inductor backend: same numbers, no Dynamo, nothing compiled later."""

from __future__ import annotations

import pytest
import torch

import graphcache
from graphcache import BackendError, pyramid_attention_broadcast
from tests.models import run_loop, tiny, tiny_inputs

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


@pytest.mark.slow
def test_agrees_with_eager_and_never_recompiles() -> None:
    eager = graphcache.compile(tiny(cross=True), PAB, backend="eager")
    torch._dynamo.utils.counters.clear()
    subject = graphcache.compile(
        tiny(cross=True), PAB, example_inputs=tiny_inputs(), progress=False
    )
    assert subject.cache_stats.graphs_compiled == 4
    for seed in (1, 2):
        runs = [run_loop(side, 50, seed=seed) for side in (subject, eager)]
        for got, want in zip(*runs, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert subject.cache_stats.steps == eager.cache_stats.steps
    assert subject.cache_stats.graphs_compiled == 4
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert not counters["frames"]
    assert subject.cache_stats.peak_buffer_bytes == subject.cache_stats.planned_bytes


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
