"""Whole pipelines: compiled, followed, copied, made anew, and given back."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_pyramid_attention_broadcast
from torch import nn

import graphcache
from graphcache import CaptureError, GraphCacheError, PolicyError, never_reuse
from graphcache.pipelines import _scheduler_name, is_transformer
from graphcache.policy import Mask, Policy
from graphcache.policy.regions import Attention
from graphcache.runtime.following import PipelineClock
from graphcache.runtime.module import CompiledModule
from tests.models import tiny
from tests.pipes import (
    PIPES,
    TinyPipe,
    Transformer,
    cogvideox,
    draw,
    flux,
    redraw,
    sd3,
    tiny_pipe,
    wan,
)
from tests.runtime.policies import STATIC

every_pipe = pytest.mark.parametrize("name", PIPES)
MASK = (1, 0, 1, 0, 0, 1)


def pab(pipe: Any = None) -> PyramidAttentionBroadcastConfig:
    """The README's; it knows the timestep if it is given a pipeline."""
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=None if pipe is None else lambda: timestep_of(pipe),
    )


def timestep_of(pipe: Any) -> float:
    """The timestep of a step: SD3's pipeline and Flux's image to image do not say."""
    scheduler = pipe.scheduler
    if not hasattr(scheduler, "step_index"):
        return float(pipe.current_timestep)
    index = scheduler.step_index
    if index is None:
        index = scheduler.begin_index or 0
    return float(scheduler.timesteps[index])


def hook(pipe: Any) -> None:
    """Cache as diffusers does."""
    apply_pyramid_attention_broadcast(pipe.transformer, pab(pipe))


def compiled(pipe: Any, config: object = None, **kwargs: Any) -> Any:
    given = pab() if config is None else config
    result = graphcache.compile(pipe, given, **{"backend": "eager", **kwargs})
    assert result is pipe
    return pipe


def reused(pipe: Any) -> int:
    return sum(pipe.transformer.cache_stats.reused.values())


@every_pipe
def test_never_reuse_is_the_uncached_pipeline(name: str) -> None:
    kind = PIPES[name]
    pipe = kind.make()
    originals = [getattr(pipe, part) for part in kind.transformers]
    expected = draw(pipe)
    compiled(pipe, never_reuse())
    for part, original in zip(kind.transformers, originals, strict=True):
        assert isinstance(getattr(pipe, part), CompiledModule)
        assert isinstance(getattr(pipe, part), type(original))
    assert torch.equal(draw(pipe), expected)
    assert graphcache.disable(pipe) is pipe
    for part, original in zip(kind.transformers, originals, strict=True):
        assert getattr(pipe, part) is original
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("name", ["flux", "cogvideox", "sd3"])
def test_pab_without_a_callback_is_diffusers_hooks(name: str) -> None:
    pipe, hooked = PIPES[name].make(), PIPES[name].make()
    plain = draw(pipe, steps=12)
    hook(hooked)
    expected = draw(hooked, steps=12)
    compiled(pipe)
    assert torch.equal(draw(pipe, steps=12), expected)
    assert reused(pipe) > 0
    assert not torch.equal(expected, plain)


def test_one_config_each() -> None:
    pipe, alone = tiny_pipe(2), tiny_pipe(2)
    mask = Policy("mask", Attention(), Mask(MASK, steps=6))
    configs = {"transformer": never_reuse(), "transformer_2": mask}
    compiled(pipe, configs)
    alone.transformer_2 = graphcache.compile(
        alone.transformer_2, mask, backend="eager", scheduler=alone.scheduler
    )
    assert torch.equal(draw(pipe), draw(alone))
    assert not pipe.transformer.cache_stats.reused
    assert pipe.transformer_2.cache_stats.reused["mask"] > 0


@pytest.mark.parametrize(
    "config",
    [
        {"method": "fora", "interval": 2},
        [{"method": "fora", "interval": 2}],
        {"transformer": {"method": "fora", "interval": 2}},
    ],
)
def test_a_config_may_be_data(config: Any) -> None:
    pipe = compiled(tiny_pipe(2), config)
    assert isinstance(pipe.transformer, CompiledModule)
    one_for_all = "transformer" not in config
    assert isinstance(pipe.transformer_2, CompiledModule) is one_for_all


def test_a_mapping_compiles_what_it_names_alone() -> None:
    pipe = wan()
    first, second = pipe.transformer, pipe.transformer_2
    compiled(pipe, {"transformer_2": pab()})
    assert pipe.transformer is first
    assert isinstance(pipe.transformer_2, CompiledModule)
    text = graphcache.summary(pipe)
    assert "transformer: WanTransformer3DModel\n  not compiled" in text
    graphcache.disable(pipe)
    assert pipe.transformer_2 is second


def test_one_object_under_two_names_is_compiled_once() -> None:
    pipe = tiny_pipe()
    pipe.transformer_2 = pipe.transformer
    expected = draw(pipe)
    with pytest.raises(PolicyError, match=r"transformer and transformer_2 .* one obj"):
        compiled(pipe, {"transformer": pab(), "transformer_2": never_reuse()})
    compiled(pipe, never_reuse())
    assert pipe.transformer is pipe.transformer_2
    assert torch.equal(draw(pipe), expected)
    assert "transformer, transformer_2: Tr" in graphcache.summary(pipe)


def test_the_summary_has_the_statistics_of_each() -> None:
    pipe = compiled(tiny_pipe(2), STATIC)
    draw(pipe)
    text = graphcache.summary(pipe)
    assert text.startswith("TinyPipe\ntransformer: Transformer\n  ")
    for name in ("transformer", "transformer_2"):
        stats = getattr(pipe, name).cache_stats
        assert f"{stats.reused['attention']} of " in text
    pipe.transformer.disable_cache()
    assert "transformer: Transformer\n  disabled\n" in graphcache.summary(pipe)
    assert graphcache.summary(pipe.transformer).startswith("Transformer\n")


def schedulers(pipe: Any) -> Any:
    """What the compiled transformer follows."""
    return pipe.transformer._graphcache_recipe.scheduler()


def test_a_replaced_scheduler_is_followed() -> None:
    pipe, fresh = compiled(tiny_pipe()), compiled(tiny_pipe())
    draw(pipe)
    pipe.scheduler, fresh.scheduler = (
        diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        for _ in range(2)
    )
    pipe.transformer.cache_stats.clear()
    assert torch.equal(draw(pipe), draw(fresh))
    assert schedulers(pipe) is pipe.scheduler
    assert reused(pipe) == reused(fresh) > 0


def test_a_policy_that_needs_the_schedule_has_it() -> None:
    """The number of steps, which the pipeline says nowhere."""
    mask = Policy("mask", Attention(), Mask(MASK, steps=6))
    pipe = compiled(tiny_pipe(), mask)
    draw(pipe)
    steps = [record.computed["mask"] for record in pipe.transformer.cache_stats.steps]
    assert steps == [*map(bool, MASK)]
    with pytest.raises(PolicyError, match="for 6 steps and the loop has 7"):
        draw(pipe, steps=7)


def test_the_pipeline_is_not_kept_alive() -> None:
    pipe = compiled(tiny_pipe())
    draw(pipe, steps=2)
    transformer, scheduler = pipe.transformer, pipe.scheduler
    gone = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None
    assert transformer._graphcache_recipe.scheduler() is scheduler


def test_a_scheduler_that_is_given_is_not_the_pipelines() -> None:
    pipe = tiny_pipe()
    other = diffusers.FlowMatchEulerDiscreteScheduler()
    compiled(pipe, scheduler=other)
    assert pipe.transformer._graphcache_recipe.scheduler is other


def test_enabling_another_config_asks_the_pipeline_too() -> None:
    pipe = compiled(cogvideox(), never_reuse())
    pipe.transformer.enable_cache(pab())
    callback = pipe.transformer._graphcache_runner.clock.callback
    assert callback == pipe.transformer._graphcache_recipe.scheduler.timestep


class Stop(Exception):
    """Ends a generation."""


def stop(pipe: Any, step: int, timestep: Any, values: Any) -> Any:
    if step == 3:
        raise Stop
    return values


def test_an_image_to_image_pipeline_is_made_from_it() -> None:
    maker = diffusers.FluxImg2ImgPipeline
    pipe, hooked = compiled(flux()), maker.from_pipe(flux())
    draw(pipe)
    again = maker.from_pipe(pipe)
    assert again.transformer is pipe.transformer
    for subject in (again, hooked):
        subject.set_progress_bar_config(disable=True)
    plain = redraw(hooked, steps=12)
    hook(hooked)
    expected = redraw(hooked, steps=12)
    assert not torch.equal(expected, plain)
    assert torch.equal(redraw(again, steps=12), expected)
    # What the first pipeline was interrupted at is no timestep of the second's.
    with pytest.raises(Stop):
        draw(pipe, callback_on_step_end=stop)
    assert pipe.current_timestep is not None
    assert pipe.transformer._graphcache_recipe.scheduler.timestep() is not None
    assert torch.equal(redraw(again, steps=12), expected)
    assert pipe.transformer._graphcache_recipe.scheduler.timestep() is None
    # The second lives on without the first.
    del pipe
    gc.collect()
    assert torch.equal(redraw(again, steps=12), expected)
    graphcache.disable(again)
    assert torch.equal(redraw(again, steps=12), plain)


@pytest.mark.parametrize(
    "maker",
    [diffusers.AutoPipelineForImage2Image, diffusers.AutoPipelineForInpainting],
)
def test_pipelines_that_diffusers_finds_by_itself(maker: Any) -> None:
    pipe = compiled(flux())
    again = maker.from_pipe(pipe)
    assert again.transformer is pipe.transformer
    assert diffusers.FluxPipeline.from_pipe(again).transformer is pipe.transformer


def test_components_make_another_pipeline() -> None:
    pipe = compiled(tiny_pipe(), never_reuse())
    expected = draw(tiny_pipe())
    again = TinyPipe(**pipe.components)
    assert torch.equal(draw(again), expected)
    again.register_modules(transformer=pipe.transformer)
    assert again.config.transformer == tiny_pipe().config.transformer
    assert compiled(flux()).config.transformer == flux().config.transformer


def test_what_is_saved_is_loaded_as_the_plain_class(tmp_path: Path) -> None:
    pipe = compiled(sd3())
    expected = draw(sd3())
    pipe.save_pretrained(tmp_path)
    none = {name: None for name, part in pipe.components.items() if part is None}
    plain = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path, **none)
    plain.set_progress_bar_config(disable=True)
    assert not isinstance(plain.transformer, CompiledModule)
    assert plain.config.transformer == pipe.config.transformer
    assert torch.equal(draw(plain), expected)


def copies(pipe: Any, way: str) -> Any:
    if way == "deepcopy":
        return copy.deepcopy(pipe)
    if way == "pickle":
        return pickle.loads(pickle.dumps(pipe))
    file = io.BytesIO()
    torch.save(pipe, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_a_copy_of_the_pipeline_follows_its_own_scheduler(way: str) -> None:
    pipe = compiled(tiny_pipe())
    expected = draw(pipe)
    twin = copies(pipe, way)
    assert schedulers(twin) is twin.scheduler
    assert schedulers(pipe) is pipe.scheduler
    assert twin.scheduler is not pipe.scheduler
    assert torch.equal(draw(twin), expected)
    assert torch.equal(draw(pipe), expected)
    assert reused(twin) == reused(pipe) // 2 > 0
    graphcache.disable(twin)
    assert not isinstance(twin.transformer, CompiledModule)
    assert isinstance(pipe.transformer, CompiledModule)


@pytest.mark.parametrize("asked", [False, True])
def test_a_copy_of_a_pipeline_compiled_by_hand_follows_no_other(asked: bool) -> None:
    """A function that is attached asks the pipeline of before, whatever is copied."""
    pipe = tiny_pipe()
    scheduler = (lambda: pipe.scheduler) if asked else pipe.scheduler
    pipe.transformer = graphcache.compile(
        pipe.transformer, pab(), backend="eager", scheduler=scheduler
    )
    expected = draw(pipe)
    twin = copy.deepcopy(pipe)
    followed = twin.transformer._graphcache_recipe.scheduler
    assert followed is (None if asked else twin.scheduler)
    assert torch.equal(draw(twin), expected)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("given", [False, True])
def test_a_copy_of_the_transformer_follows_no_scheduler(way: str, given: bool) -> None:
    pipe = tiny_pipe()
    compiled(pipe, scheduler=pipe.scheduler if given else None)
    alone = copies(pipe.transformer, way)
    followed = alone._graphcache_recipe.scheduler
    assert followed is None or followed() is None
    expected = draw(pipe)
    pipe.transformer = alone
    assert torch.equal(draw(pipe), expected)
    assert reused(pipe) > 0


def test_a_pipeline_that_is_offloaded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks are run, though they move nothing where there is only a CPU.

    After every generation the pipeline removes them and puts them on anew.
    """
    pipe = wan()
    expected = draw(pipe)
    seen: list[Any] = []
    moved = CpuOffload.pre_forward

    def pre_forward(hook: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return moved(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    pipe.enable_model_cpu_offload(device="cpu")
    before = [pipe.transformer, pipe.transformer_2]
    compiled(pipe, never_reuse())
    after = [pipe.transformer, pipe.transformer_2]
    assert [hook.model for hook in pipe._all_hooks] == after
    for modules, change in (
        (after, lambda: None),
        (after, lambda: None),
        ([], pipe.remove_all_hooks),
        (after, lambda: pipe.enable_model_cpu_offload(device="cpu")),
        (before, lambda: graphcache.disable(pipe)),
        ([], pipe.remove_all_hooks),
    ):
        change()
        seen.clear()
        assert torch.equal(draw(pipe), expected)
        assert set(map(id, seen)) == set(map(id, modules))
        assert all(hook.model in modules for hook in pipe._all_hooks)
    assert [pipe.transformer, pipe.transformer_2] == before
    assert all("_hf_hook" not in vars(module) for module in before)


class Unet(diffusers.DiffusionPipeline):
    """A pipeline with a UNet."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


def unet() -> Any:
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )


class Strange(diffusers.DiffusionPipeline):
    """A pipeline with a transformer that is none of diffusers'."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser)


class Combined(diffusers.DiffusionPipeline):
    """A pipeline that runs another."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.prior_pipe = Strange(transformer)


def test_what_has_no_transformer() -> None:
    subject = Unet(unet(), diffusers.DDIMScheduler())
    with pytest.raises(CaptureError, match="unet is a UNet2DModel, and a UNet"):
        compiled(subject)
    for thing in (object(), 3, {"transformer": tiny()}, lambda: None):
        with pytest.raises(CaptureError, match="no pipeline of diffusers"):
            compiled(thing)


def test_a_transformer_of_another_library_is_named() -> None:
    subject = Strange(tiny())
    original = subject.denoiser
    with pytest.raises(CaptureError, match=r"denoiser \(TinyTransformer\)"):
        compiled(subject)
    assert subject.denoiser is original
    compiled(subject, {"denoiser": STATIC})
    assert isinstance(subject.denoiser, CompiledModule)
    # It has no scheduler, and needs none.
    assert subject.denoiser._graphcache_recipe.scheduler() is None
    assert graphcache.disable(subject).denoiser is original


def test_a_pipeline_of_pipelines() -> None:
    with pytest.raises(CaptureError, match=r"compile those, pipe\.prior_pipe"):
        compiled(Combined(tiny()))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transfomer": never_reuse()}, "no module 'transfomer'.*transformer"),
        ({"scheduler": never_reuse()}, "no module 'scheduler'"),
        ({"transformer": never_reuse(), "vae": never_reuse()}, "no module 'vae'"),
        ({}, "no module to compile"),
        ({"transformer": never_reuse(), "transformer_2": 3}, "no cache config"),
    ],
)
def test_a_bad_mapping_changes_nothing(config: Any, message: str) -> None:
    pipe = wan()
    before = dict(vars(pipe))
    with pytest.raises(PolicyError, match=message):
        compiled(pipe, config)
    assert vars(pipe) == before


def test_compiled_twice() -> None:
    pipe = compiled(wan())
    before = dict(vars(pipe))
    for config in (pab(), {"transformer_2": pab()}):
        with pytest.raises(CaptureError, match=r"already: graphcache\.disable\(pipe\)"):
            compiled(pipe, config)
    assert vars(pipe) == before
    with pytest.raises(CaptureError, match="example_inputs"):
        compiled(tiny_pipe(), example_inputs={})


def test_nothing_to_give_back() -> None:
    for thing in (wan(), tiny(), None):
        with pytest.raises(GraphCacheError, match="nothing of this"):
            graphcache.disable(thing)
    with pytest.raises(GraphCacheError, match="neither a pipeline"):
        graphcache.summary(tiny())


def test_a_training_mode_leaves_the_pipeline_as_it_was() -> None:
    pipe = wan()
    pipe.transformer_2.train()
    before = dict(vars(pipe))
    with pytest.raises(CaptureError, match="training mode"):
        compiled(pipe)
    assert vars(pipe) == before


class Denoise(diffusers.ModularPipelineBlocks):  # type: ignore[misc]
    """The loop of a modular pipeline."""

    model_name = "tiny"

    @property
    def expected_components(self) -> list[Any]:
        """What it wants."""
        return [
            diffusers.ComponentSpec("transformer", Transformer),
            diffusers.ComponentSpec("scheduler", type(tiny_pipe().scheduler)),
        ]

    def __call__(self, components: Any, state: Any) -> Any:
        """Six steps; what it draws is left on the pipeline."""
        components.drawn = draw(TinyPipe(components.transformer, components.scheduler))
        return components, state


def test_a_modular_pipeline() -> None:
    plain = tiny_pipe()
    pipe = Denoise().init_pipeline()
    with pytest.raises(CaptureError, match="no transformer"):
        compiled(pipe)
    pipe.update_components(transformer=plain.transformer, scheduler=plain.scheduler)
    original = pipe.transformer
    expected = draw(plain)
    compiled(pipe, never_reuse())
    assert pipe.components["transformer"] is pipe.transformer is not original
    assert schedulers(pipe) is pipe.scheduler
    pipe()
    assert torch.equal(pipe.drawn, expected)
    assert len(pipe.transformer.cache_stats.steps) == 6
    assert graphcache.disable(pipe).transformer is original


def test_a_transformer_is_told_by_its_class() -> None:
    for name in dir(diffusers):
        if name.endswith(("Transformer2DModel", "Transformer3DModel")):
            assert is_transformer(object.__new__(getattr(diffusers, name)))
        if "ControlNet" in name and name.endswith("Model"):
            assert not is_transformer(object.__new__(getattr(diffusers, name)))
    assert not is_transformer(object.__new__(diffusers.AutoencoderKL))


def test_the_scheduler_of_a_part() -> None:
    class Pipe:
        scheduler = diffusers.DDIMScheduler()
        prior_scheduler = diffusers.DDPMScheduler()

    pipe = Pipe()
    names = [_scheduler_name(pipe, name) for name in ("prior", "prior_prior", "x")]
    assert names == ["prior_scheduler", "prior_scheduler", "scheduler"]
    assert PipelineClock(pipe, names[0])() is pipe.prior_scheduler
