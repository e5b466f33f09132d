"""Denoising loops: a real scheduler moves the latents, as in a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from torch import Tensor, nn

from tests.zoo.models import Inputs, TinyModel, first_inputs


@dataclass
class Clock:
    """What a pipeline's ``current_timestep`` would be."""

    now: float | None = None

    def __call__(self) -> float | None:
        """The current timestep, in the scheduler's units."""
        return self.now


@dataclass
class Loop:
    """A denoising loop in progress: one stream of calls."""

    tiny: TinyModel
    steps: int
    seed: int
    outputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = self.tiny.scheduler()
        self.scheduler.set_timesteps(self.steps)
        self.inputs = first_inputs(self.tiny, seed=self.seed)
        self.latents = self.inputs.pop("hidden_states")
        # Ancestral samplers draw noise at every step.
        self.noise = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            self.noise = {"generator": torch.Generator().manual_seed(self.seed)}

    def step(self, module: nn.Module, t: Tensor) -> None:
        """Call the module once and let the scheduler move the latents."""
        (output,) = module(**self.arguments(t), return_dict=False)
        self.outputs.append(output.clone())
        output = self.prediction(output)
        if self.tiny.learned_sigma:
            output = output.chunk(2, dim=1)[0]
        self.latents = self.scheduler.step(
            output, t, self.latents, return_dict=False, **self.noise
        )[0]

    def arguments(self, t: Tensor) -> Inputs:
        """The arguments of the call at a timestep."""
        latents = self.batch()
        if hasattr(self.scheduler, "scale_model_input"):
            latents = self.scheduler.scale_model_input(latents, t)
        return {
            **self.tiny.at(self.inputs, len(self.outputs)),
            "hidden_states": latents,
            "timestep": self.tiny.timestep(t, latents.shape[0]),
        }

    def batch(self) -> Tensor:
        """The latents as the module gets them."""
        return self.latents

    def prediction(self, output: Tensor) -> Tensor:
        """What the scheduler gets of the module's output."""
        return output

    def place(self) -> dict[str, Any]:
        """Where the loop is, as a cache context tells it."""
        index = len(self.outputs)
        sigmas = getattr(self.scheduler, "sigmas", None)
        return {
            "step_index": index,
            "sigma": None if sigmas is None else float(sigmas[index]),
            "num_inference_steps": len(self.scheduler.timesteps),
        }


@dataclass
class GuidedLoop(Loop):
    """Guidance in one batch: latents twice, [unconditional, conditional].

    The first half of the batch is denoised; both halves of the prompts are used.
    """

    guidance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.tiny.latents[0] % 2 == 0, "needs prompts for both halves"
        self.latents = self.latents[: self.tiny.latents[0] // 2]

    def batch(self) -> Tensor:
        """The latents of both halves."""
        return torch.cat([self.latents] * 2)

    def prediction(self, output: Tensor) -> Tensor:
        """Both halves combined."""
        unconditional, conditional = output.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


def denoise(
    module: nn.Module,
    tiny: TinyModel,
    steps: int,
    *,
    clock: Clock | None = None,
    seed: int = 1,
    context: str | None = "cond_uncond",
    placed: bool = False,
) -> list[Tensor]:
    """One generation; the module's output at every step.

    With ``placed``, the context also says the step, its sigma and their number.
    """
    return drive(module, Loop(tiny, steps, seed), clock, context, placed)


def denoise_guided(
    module: nn.Module,
    tiny: TinyModel,
    steps: int,
    *,
    clock: Clock | None = None,
    seed: int = 1,
    context: str | None = "cond_uncond",
    placed: bool = False,
    guidance: float = 3.0,
) -> list[Tensor]:
    """One generation with guidance; the output of both halves at every step."""
    loop = GuidedLoop(tiny, steps, seed, guidance=guidance)
    return drive(module, loop, clock, context, placed)


def drive(
    module: nn.Module,
    loop: Loop,
    clock: Clock | None,
    context: str | None,
    placed: bool,
) -> list[Tensor]:
    """Run a loop to its end."""
    with torch.no_grad(), finished(module):
        for t in loop.scheduler.timesteps:
            set_clock(clock, loop.tiny, t)
            with in_context(module, context, **loop.place() if placed else {}):
                loop.step(module, t)
    return loop.outputs


def denoise_in_turn(
    module: nn.Module,
    tiny: TinyModel,
    steps: int,
    *,
    clock: Clock | None = None,
    seeds: tuple[int, int] = (1, 2),
    contexts: tuple[str | None, str | None] = ("cond", "uncond"),
    placed: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Sequential guidance: two streams, called one after the other at every step."""
    loops = [Loop(tiny, steps, seed) for seed in seeds]
    with torch.no_grad(), finished(module):
        for t in loops[0].scheduler.timesteps:
            set_clock(clock, tiny, t)
            for loop, context in zip(loops, contexts, strict=True):
                with in_context(module, context, **loop.place() if placed else {}):
                    loop.step(module, t)
    return loops[0].outputs, loops[1].outputs


def set_clock(clock: Clock | None, tiny: TinyModel, t: Tensor) -> None:
    """Tell the clock the time, as a pipeline does before it calls."""
    if clock is not None:
        clock.now = tiny.current(t)


def in_context(
    module: nn.Module, name: str | None, **place: Any
) -> AbstractContextManager[None]:
    """The module's cache context, if it has one and a name is given."""
    if name is None:
        return nullcontext()
    if hasattr(module, "cache_context"):
        context: AbstractContextManager[None] = module.cache_context(name, **place)
        return context
    return _hook_context(module, CacheContext(name, **place))


@contextmanager
def _hook_context(module: nn.Module, context: CacheContext) -> Iterator[None]:
    # PixArt and SD3 have blocks that hooks know, and no method to set a context.
    if not _is_hooked(module):
        yield
        return
    _set_cache_context(module, context)
    yield
    _set_cache_context(module, None)


@contextmanager
def finished(module: nn.Module) -> Iterator[None]:
    """Reset the caches at the end of a generation, as pipelines do."""
    yield
    if hasattr(module, "_reset_stateful_cache"):
        module._reset_stateful_cache()
    elif _is_hooked(module):
        HookRegistry.check_if_exists_or_initialize(module).reset_stateful_hooks()


def _is_hooked(module: nn.Module) -> bool:
    return any(hasattr(part, "_diffusers_hook") for part in module.modules())
