"""Hooks of diffusers, run eager as they are: the oracle of the parity tests.

Of every call of the root it is recorded which attentions, feed-forwards and blocks ran
for real, whatever a hook gave out instead.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import (
    apply_faster_cache,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_sea_cache,
    apply_taylorseer_cache,
)
from torch import Tensor, nn

from tests.parts import attentions, blocks, feed_forwards
from tests.zoo import Clock, TinyModel, denoise, denoise_in_turn, make

Apply = Callable[[nn.Module, Clock], None]

APPLY: dict[type, Callable[[nn.Module, Any], None]] = {
    FasterCacheConfig: apply_faster_cache,
    FirstBlockCacheConfig: apply_first_block_cache,
    MagCacheConfig: apply_mag_cache,
    PyramidAttentionBroadcastConfig: apply_pyramid_attention_broadcast,
    SeaCacheConfig: apply_sea_cache,
    TaylorSeerCacheConfig: apply_taylorseer_cache,
}


@dataclass
class Watch:
    """What ran, in a new entry for each call of the root.

    Attributes:
        calls: How often each watched module ran.
        batches: The batch that the root's own forward got.
    """

    calls: list[Counter[str]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


def watch(module: nn.Module) -> Watch:
    """Watch a module from now on; hooks that are put on it later are seen through."""
    seen = Watch()
    paths = {*attentions(module), *feed_forwards(module), *blocks(module), "proj_out"}
    for path, part in module.named_modules():
        if path in paths:
            part.forward = _counted(seen, path, part.forward)
    module.forward = _measured(seen, module.forward)
    module.register_forward_pre_hook(lambda *_: seen.calls.append(Counter()))
    return seen


def _counted(seen: Watch, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        seen.calls[-1][path] += 1
        return forward(*args, **kwargs)

    return run


def _measured(seen: Watch, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        seen.batches.append(kwargs["hidden_states"].shape[0])
        return forward(*args, **kwargs)

    return run


@dataclass
class HookRun:
    """One stream of a generation with hooks.

    Attributes:
        outputs: The root's output at every step.
        computed: Paths of the modules that ran, by step.
        batches: The batch that the root's own forward got, by step.
    """

    outputs: list[Tensor]
    computed: list[set[str]]
    batches: list[int]

    def steps(self, path: str) -> list[int]:
        """The steps at which the module at a path ran."""
        return [step for step, paths in enumerate(self.computed) if path in paths]


@dataclass(frozen=True)
class Caching:
    """Applies a config of diffusers, made anew for each module: hooks change it."""

    config: Callable[[Clock], Any]

    def __call__(self, module: nn.Module, clock: Clock) -> None:
        """Put the hooks on a module."""
        made = self.config(clock)
        APPLY[type(made)](module, made)


def caching(config: Callable[[Clock], Any]) -> Caching:
    """Hooks by a config that may read a clock."""
    return Caching(config)


def hooked(tiny: TinyModel, apply: Apply) -> tuple[nn.Module, Clock, Watch]:
    """A watched module with hooks, and the clock that they read."""
    clock, module = Clock(), make(tiny)
    seen = watch(module)
    apply(module, clock)
    return module, clock, seen


def by_hooks(
    tiny: TinyModel,
    apply: Apply,
    steps: int,
    *,
    seed: int = 1,
    context: str | None = "cond_uncond",
    placed: bool = False,
    loop: Callable[..., list[Tensor]] = denoise,
) -> HookRun:
    """One generation with hooks; `denoise_guided` is the loop with guidance."""
    module, clock, seen = hooked(tiny, apply)
    outputs = loop(
        module, tiny, steps, clock=clock, seed=seed, context=context, placed=placed
    )
    return HookRun(outputs, list(map(set, seen.calls)), seen.batches)


def by_hooks_in_turn(
    tiny: TinyModel,
    apply: Apply,
    steps: int,
    *,
    seeds: tuple[int, int] = (1, 2),
    contexts: tuple[str | None, str | None] = ("cond", "uncond"),
    placed: bool = False,
) -> tuple[HookRun, HookRun]:
    """One generation of two streams in turn, with hooks."""
    module, clock, seen = hooked(tiny, apply)
    outputs = denoise_in_turn(
        module, tiny, steps, clock=clock, seeds=seeds, contexts=contexts, placed=placed
    )
    computed = list(map(set, seen.calls))
    first, second = (
        HookRun(outputs[stream], computed[stream::2], seen.batches[stream::2])
        for stream in (0, 1)
    )
    return first, second


def calibrated_ratios(tiny: TinyModel, steps: int, *, seed: int = 1) -> list[float]:
    """The ratios that MagCache measures, which it prints and gives in no other way."""

    def config(_: Clock) -> MagCacheConfig:
        return MagCacheConfig(calibrate=True, num_inference_steps=steps)

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        by_hooks(tiny, caching(config), steps, seed=seed)
    # The heading begins with a bracket too.
    ratios: list[float] = ast.literal_eval(printed.getvalue().strip().splitlines()[-1])
    return ratios
