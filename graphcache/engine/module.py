"""The module that an engine is loaded as: a drop-in for the transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphcache.engine.manifest import Manifest
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
    """

    _graphcache_runner: EngineStepper  # type: ignore[misc]

    def __init__(self, path: Path, manifest: Manifest, stepper: EngineStepper) -> None:
        super().__init__()
        self.path = path
        self.manifest = manifest
        self.config = EngineConfig(json.loads(manifest.module.config))
        self._graphcache_runner = stepper
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One call, with the arguments of the transformer's forward.

        Raises:
            EngineError: If the engine holds nothing for such a call.
        """
        return self._graphcache_runner(args, kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return dtype_of(self.manifest.module.dtype)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._graphcache_runner.device

    @property
    def cache_thresholds(self) -> Any:
        """The thresholds of dynamic policies, by policy name; set at any time."""
        return self._graphcache_runner.thresholds

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

    def to(self, *args: Any, **kwargs: Any) -> EngineModule:
        """Stay where it is.

        Raises:
            EngineError: If it is to be somewhere else, or of another dtype.
        """
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        moved = device is not None and _indexed(device) != _indexed(self.device)
        if moved or dtype not in (None, self.dtype):
            raise EngineError(
                f"the engine is {self.dtype} on {self.device} and stays that: load it "
                "with device=, or export it again"
            )
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> EngineModule:
        """Nothing: there are no tensors to apply it to."""
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


def _indexed(device: torch.device) -> torch.device:
    if device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, torch.get_device_module(device).current_device())
