"""Engines for tests, and what they have in common with compiled modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import graphcache
from graphcache.engine import EngineModule, export, load
from graphcache.runtime.stats import StepRecord
from tests.engine.memory import NAME
from tests.models import tiny, tiny_inputs
from tests.runtime.policies import STATIC


def compiled(config: object = STATIC, **kwargs: Any) -> Any:
    """A tiny module, compiled for the shapes of its tests."""
    module = tiny(depth=3, cross=kwargs.pop("cross", False))
    return graphcache.compile(
        module, config, backend="eager", example_inputs=tiny_inputs(), **kwargs
    )


def engine_of(
    subject: nn.Module, path: Path, backend: str = NAME, **kwargs: Any
) -> EngineModule:
    """The module as an engine, through the disk.

    Args:
        subject: A compiled module.
        path: A folder for it.
        backend: The format.
        **kwargs: For `load`.
    """
    written = export(subject, path / "engine", backend=backend, progress=False)
    return load(written, **kwargs)


def steps(module: Any) -> list[StepRecord]:
    """What was decided at each step."""
    return list(module.cache_stats.steps)


def equal(left: Any, right: Any) -> bool:
    """Whether two results are equal bit for bit, in whatever holds their tensors."""
    pairs = zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)
