"""The module that an engine is loaded as: a drop-in for the transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphcache.engine.manifest import MANIFEST_FILE, Manifest
from graphcache.engine.plain import dtype_of
from graphcache.engine.stepping import EngineStepper
from graphcache.errors import EngineError
from graphcache.runtime.controls import CacheControls


class EngineConfig(dict[str, Any]):
    """The configuration of the model, by key or by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no {name!r}") from None


class EngineModule(CacheControls, nn.Module):
    """An engine, called as the transformer that it was compiled from.

    Streams, steps, resets, statistics and thresholds are those of a compiled module. It
    has no parameters and no submodules: what there is of the model is in the engine.

    Attributes:
        path: The engine.
        manifest: What it says of itself.
        config: The configuration of the model.

    Raises:
        EngineError: If the manifest says of the model what cannot be.
    """

    _graphcache_runner: EngineStepper  # type: ignore[misc]

    def __init__(self, path: Path, manifest: Manifest, stepper: EngineStepper) -> None:
        super().__init__()
        self.path = path
        self.manifest = manifest
        self.config = _config(manifest.module.config)
        self._dtype = dtype_of(manifest.module.dtype)
        self._graphcache_runner = stepper
        self.training = False
        self.forward = _forward(stepper)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._graphcache_runner.device

    def enable_cache(self, config: None = None) -> None:
        """Reuse again after `disable_cache`.

        Raises:
            EngineError: If another config is given: an engine has the one it has.
            ValueError: If the cache is enabled.
        """
        if config is not None:
            raise EngineError(
                "an engine has the policies that it was exported with: compile the "
                "model with this config, and export it"
            )
        if self.is_cache_enabled:
            raise ValueError("the cache is enabled already")
        self._graphcache_runner.enabled = True
        self._graphcache_runner.reset()

    def train(self, mode: bool = True) -> EngineModule:
        """Stay in eval mode.

        Raises:
            EngineError: If it is to be trained.
        """
        if mode:
            raise EngineError("an engine cannot be trained: it has no parameters")
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> EngineModule:
        """Stay as it is, whatever `to`, `cuda`, `half` and the like are told.

        Raises:
            EngineError: If it is to be somewhere else, or of another dtype.
        """
        probe = torch.empty(0, dtype=self.dtype, device=self.device)
        wanted = fn(probe)
        if (wanted.dtype, wanted.device) != (probe.dtype, probe.device):
            raise EngineError(
                f"the engine is {self.dtype} on {self.device} and cannot be "
                f"{wanted.dtype} on {wanted.device}: load it with device=, or compile "
                "the model as it is to be and export that"
            )
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: it is compiled.

        Raises:
            EngineError: Always.
        """
        raise EngineError("an engine is compiled already")

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineModule:
        """Refuse: two copies would share their streams.

        Raises:
            EngineError: Always.
        """
        raise EngineError("load the engine again instead of copying it")

    def extra_repr(self) -> str:
        """Where it is, and what it was."""
        return f"{self.manifest.module.name}, {self.manifest.backend}, {self.path}"


def _config(text: str) -> EngineConfig:
    try:
        return EngineConfig(json.loads(text))
    except (ValueError, TypeError) as error:
        raise EngineError(
            f"{MANIFEST_FILE}: the model's config is malformed ({error}): export anew"
        ) from error


def _forward(stepper: EngineStepper) -> Callable[..., Any]:
    """The forward, with the signature of the one that was compiled."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        """One call, with the arguments of the transformer's forward.

        Raises:
            EngineError: If the engine holds nothing for such a call.
        """
        return stepper(args, kwargs)

    described: Any = forward
    described.__signature__ = stepper.signature.signature
    return forward
