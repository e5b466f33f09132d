"""Compiled models against diffusers' hooks: the same steps, the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import graphcache
from tests.models import same
from tests.parity.hooks import Caching, HookRun, by_hooks
from tests.parts import trunk
from tests.zoo import ZOO, Clock, denoise, make


@dataclass
class Run:
    """One generation of a compiled model.

    Attributes:
        outputs: The module's output at every step.
        module: The compiled module.
    """

    outputs: list[Tensor]
    module: nn.Module

    def steps(self, policy: str) -> list[int]:
        """The steps at which a policy computed."""
        records = self.module.cache_stats.steps
        return [i for i, record in enumerate(records) if record.computed[policy]]


def compiled(
    name: str,
    config: Callable[[Clock], Any],
    steps: int,
    *,
    loop: Callable[..., list[Tensor]] = denoise,
    backend: str = "eager",
    lowering: str = "auto",
    **options: Any,
) -> Run:
    """One generation of a tiny model, compiled for a config."""
    clock = Clock()
    module = graphcache.compile(
        make(ZOO[name]),
        config(clock),
        backend=backend,
        lowering=lowering,
        progress=False,
    )
    outputs = loop(module, ZOO[name], steps, clock=clock, **options)
    return Run(outputs, module)


def last_block(name: str) -> str:
    """Path of the last block of a model: it runs where the tail is computed."""
    return trunk(make(ZOO[name]))[-1]


def assert_parity(
    name: str,
    hooks: Caching,
    steps: int,
    policy: str,
    paths: Sequence[str],
    *,
    lowerings: Sequence[str] = ("auto",),
    **options: Any,
) -> tuple[HookRun, list[Run]]:
    """The same computed steps and equal bits, under each lowering.

    Args:
        name: The model.
        hooks: diffusers' config.
        steps: Steps of the loop.
        policy: The policy whose steps are compared.
        paths: Modules that run where it computes.
        lowerings: How ours are lowered.
        **options: Of the loop.
    """
    expected = by_hooks(ZOO[name], hooks, steps, **options)
    computed = expected.steps(paths[0])
    assert all(expected.steps(path) == computed for path in paths)
    runs = []
    for lowering in lowerings:
        run = compiled(name, hooks.config, steps, lowering=lowering, **options)
        assert run.steps(policy) == computed
        assert same(run.outputs, expected.outputs)
        runs.append(run)
    return expected, runs


def close(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-5) -> bool:
    """Whether two runs agree to a relative tolerance at every step."""
    pairs = zip(got, want, strict=True)
    return all(torch.dist(g, w) <= tolerance * w.norm() for g, w in pairs)
