"""Bad input is a clear error of our own, raised before anything is half done."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from torch import Tensor, nn

import graphcache
from graphcache import (
    BackendError,
    CaptureError,
    GraphCacheError,
    PolicyError,
    VerifyError,
    never_reuse,
    pyramid_attention_broadcast,
)
from tests.models import TinyAttention, run_loop, same, tiny, tiny_inputs
from tests.zoo import ZOO, make

PAB = pyramid_attention_broadcast(spatial=2)


def compiled(module: nn.Module, config: object = PAB, **kwargs: Any) -> nn.Module:
    return graphcache.compile(module, config, **{"backend": "eager", **kwargs})


def test_every_error_is_ours() -> None:
    for error in (BackendError, CaptureError, PolicyError, VerifyError):
        assert issubclass(error, GraphCacheError)


def test_unknown_config() -> None:
    with pytest.raises(PolicyError, match="'pab' is no cache config"):
        compiled(tiny(), "pab")


def test_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(BackendError, match="know reference, eager, inductor"):
        compiled(tiny(), backend="turbo")


def test_unknown_lowering_lists_the_known_ones() -> None:
    with pytest.raises(BackendError, match="know auto, specialize"):
        compiled(tiny(), lowering="magic")


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_options_that_a_backend_does_not_have(backend: str) -> None:
    subject = compiled(tiny(), backend=backend, options={"max_autotune": True})
    with torch.no_grad(), pytest.raises(BackendError, match="takes no options"):
        subject(**tiny_inputs())


def test_not_a_module() -> None:
    with pytest.raises(CaptureError, match=r"function is no nn\.Module"):
        compiled(lambda: None)  # type: ignore[arg-type]


def test_compiled_already() -> None:
    with pytest.raises(CaptureError, match="compiled by graphcache already"):
        compiled(compiled(tiny()))
    with pytest.raises(CaptureError, match=r"wrapped by torch\.compile"):
        compiled(torch.compile(tiny()))  # type: ignore[arg-type]


def test_compiled_in_place() -> None:
    module = tiny()
    module.compile()
    with pytest.raises(CaptureError, match="been compiled in place"):
        compiled(module)


def test_training_mode_is_refused_at_compile_and_at_the_call() -> None:
    with pytest.raises(CaptureError, match=r"training mode.*\.eval\(\)"):
        compiled(tiny().train())
    subject = compiled(tiny())
    subject.train()
    with torch.no_grad(), pytest.raises(CaptureError, match="training mode"):
        subject(**tiny_inputs())


def test_gradients_are_refused() -> None:
    subject = compiled(tiny())
    with pytest.raises(CaptureError, match="gradients are required"):
        subject(**tiny_inputs())
    subject.requires_grad_(False)
    assert subject(**tiny_inputs())[0].shape == (2, 3, 8)
    inputs = tiny_inputs()
    inputs["hidden_states"].requires_grad_()
    with pytest.raises(CaptureError, match="gradients are required"):
        subject(**inputs)


def test_enabled_hooks_are_refused() -> None:
    module = make(ZOO["cogvideox"])
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 5
    )
    module.enable_cache(config)
    with pytest.raises(CaptureError, match=r"disable_cache\(\)"):
        compiled(module, config)
    module.disable_cache()
    # What diffusers leaves behind must not shadow the compiled forward.
    module.enable_cache(FasterCacheConfig(current_timestep_callback=lambda: 5))
    module.disable_cache()
    subject = compiled(module, config)
    assert subject.forward.__func__ is type(subject).forward


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda part: part.register_forward_pre_hook(lambda *_: None), "torch forward"),
        (
            lambda part: setattr(part, "forward", partial(part.forward)),
            "forward replaced",
        ),
    ],
)
def test_hooks_on_a_part_are_named(hook: Any, message: str) -> None:
    module = tiny()
    hook(module.blocks[1].attn1)
    with pytest.raises(CaptureError, match=rf"blocks\.1\.attn1 has .*{message}"):
        compiled(module)


class Branches(nn.Module):
    """Branches on a value."""

    def forward(self, x: Tensor) -> Tensor:
        """Not exportable."""
        return x if x.sum() > 0 else -x


class Wrapper(nn.Module):
    """Holds a part that cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Branches()

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Calls it."""
        return self.part(x)


def test_what_cannot_be_exported_is_named_with_path_and_line() -> None:
    inputs = {"x": torch.ones(2), "timestep": torch.tensor([5.0])}
    subject = compiled(Wrapper().eval())
    with torch.no_grad(), pytest.raises(CaptureError) as caught:
        subject(**inputs)
    message = str(caught.value)
    assert "Wrapper cannot be captured at part (" in message
    assert "test_api.py:" in message
    assert "in forward" in message
    with torch.no_grad(), pytest.raises(CaptureError):
        graphcache.trace(Wrapper().eval(), PAB, **inputs)


class Counts(nn.Module):
    """Writes to its own buffer."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Not functional."""
        self.count += 1
        return x + self.count


def test_a_module_that_changes_its_own_state_is_refused() -> None:
    subject = compiled(Counts().eval())
    inputs = {"x": torch.ones(2), "timestep": torch.tensor([5.0])}
    with torch.no_grad(), pytest.raises(CaptureError, match="forward writes to count"):
        subject(**inputs)


class Random(nn.Module):
    """Draws random numbers."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Not deterministic."""
        return x + torch.rand_like(x)


def test_a_module_that_draws_random_numbers_is_refused() -> None:
    subject = compiled(Random().eval())
    inputs = {"x": torch.ones(2), "timestep": torch.tensor([5.0])}
    with torch.no_grad(), pytest.raises(CaptureError, match="may draw random numbers"):
        subject(**inputs)


def test_no_attention_at_all() -> None:
    subject = compiled(tiny(depth=0))
    with torch.no_grad(), pytest.raises(PolicyError, match="holds no attention"):
        subject(**tiny_inputs())


def test_a_policy_that_matches_nothing_lists_the_regions() -> None:
    subject = compiled(tiny(), pyramid_attention_broadcast(cross=2))
    with torch.no_grad(), pytest.raises(PolicyError, match=r"blocks\.0\.attn1"):
        subject(**tiny_inputs())


class Timeless(nn.Module):
    """Has no timestep to read."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = TinyAttention()

    def forward(self, x: Tensor) -> Tensor:
        """f32[1, 2, 8] to the same."""
        return self.attn(x) + 1


def test_no_timestep_to_be_had() -> None:
    subject = compiled(Timeless().eval())
    x = torch.zeros(1, 2, 8)
    with torch.no_grad(), pytest.raises(PolicyError, match="cannot be told apart"):
        subject(x)
    with torch.no_grad(), subject.cache_context("c"):
        subject(x)
        with pytest.raises(PolicyError, match="needs the timestep"):
            subject(x)
    with torch.no_grad(), subject.cache_context("c", timestep=500):
        subject(x)


def test_a_window_is_not_needed_to_cache_what_has_no_timestep() -> None:
    policies = pyramid_attention_broadcast(spatial=2, window=None)
    subject = compiled(Timeless().eval(), policies)
    with torch.no_grad(), subject.cache_context("c"):
        for _ in range(4):
            subject(torch.zeros(1, 2, 8))
    assert subject.cache_stats.computed["spatial"] == 2


def test_a_timestep_that_is_a_plain_number() -> None:
    subject = compiled(tiny())
    inputs = {**tiny_inputs(), "timestep": 500}
    with (
        torch.no_grad(),
        pytest.raises(CaptureError, match=r"torch\.tensor\(\[500\]\)"),
    ):
        subject(**inputs)


@pytest.mark.parametrize("change", [torch.float64, torch.bfloat16, "meta"])
def test_an_input_of_another_dtype_or_device(change: Any) -> None:
    subject, plain = compiled(tiny()), tiny()
    with torch.no_grad():
        subject(**tiny_inputs(900))
        inputs = tiny_inputs(800)
        inputs["hidden_states"] = inputs["hidden_states"].to(change)
        with pytest.raises(CaptureError, match=r"hidden_states is .* was captured as"):
            subject(**inputs)
        # Nothing is left half done: the next call is a first step.
        good = tiny_inputs(500)
        assert torch.equal(subject(**good)[0], plain(**good)[0])


def test_a_first_input_that_does_not_fit_the_weights() -> None:
    subject = compiled(tiny())
    inputs = tiny_inputs()
    inputs["hidden_states"] = inputs["hidden_states"].bfloat16()
    with (
        torch.no_grad(),
        pytest.raises(CaptureError, match=r"fails on this call at time \(.*models\.py"),
    ):
        subject(**inputs)


def test_autocast_is_refused() -> None:
    subject = compiled(tiny())
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(CaptureError, match="autocast"),
    ):
        subject(**tiny_inputs())


def test_example_inputs_compile_before_the_first_call() -> None:
    subject = compiled(tiny(), example_inputs=tiny_inputs())
    stats = subject.cache_stats
    assert (stats.captures, stats.graphs_compiled) == (1, 2)
    run_loop(subject, 12)
    assert (stats.captures, stats.graphs_compiled) == (1, 2)


def test_variants_want_the_config_they_were_traced_with() -> None:
    program = graphcache.trace(tiny(), PAB, **tiny_inputs())
    with pytest.raises(PolicyError, match="no policy spatial"):
        graphcache.variants(program, never_reuse())


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_never_reuse_is_the_module_bit_for_bit(backend: str) -> None:
    subject = compiled(tiny(cross=True), never_reuse(), backend=backend)
    assert same(run_loop(subject, 6), run_loop(tiny(cross=True), 6))


def test_inference_mode_works_as_no_grad() -> None:
    subject = compiled(tiny())
    expected = run_loop(compiled(tiny()), 12)
    with torch.inference_mode():
        assert same(run_loop(subject, 12), expected)
