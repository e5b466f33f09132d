"""The front door: a drop-in that measures, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar, overload

import torch
from torch import nn

from graphcache.api import refuse_compiled
from graphcache.backends.registry import get_backend
from graphcache.calibration.magcache import MagCacheCalibration, MagCacheRatios
from graphcache.calibration.observer import Observer, ObservingTarget
from graphcache.calibration.smoothcache import (
    SmoothCacheCalibration,
    SmoothCacheErrors,
)
from graphcache.calibration.teacache import TeaCacheCalibration, TeaCacheFit
from graphcache.calibration.trajectory import Recorder, Trajectory
from graphcache.errors import PolicyError
from graphcache.passes.observe import Observation
from graphcache.policy.checks import check_count
from graphcache.policy.diffusers import Configuration
from graphcache.runtime.module import Recipe, compiled_module

Report = TypeVar("Report", covariant=True)
Run = Callable[[nn.Module], Any]
_METHODS: dict[str, Callable[[], Calibration[Any]]] = {
    "magcache": MagCacheCalibration,
    "teacache": TeaCacheCalibration,
    "smoothcache": SmoothCacheCalibration,
}


class Calibration(Observation, Protocol[Report]):
    """What is measured of every step, and what is made of it."""

    def report(self, trajectories: Sequence[Trajectory], model: str) -> Report:
        """What was found.

        Args:
            trajectories: At least one, each of one stream of one generation.
            model: Name of the model's class.

        Raises:
            PolicyError: If nothing can be made of them.
        """
        ...


@overload
def calibrate(
    transformer: nn.Module,
    method: Literal["magcache"],
    run: Run,
    *,
    backend: str = "eager",
    scheduler: Any = None,
    runs: int = 1,
) -> MagCacheRatios: ...


@overload
def calibrate(
    transformer: nn.Module,
    method: Literal["teacache"],
    run: Run,
    *,
    backend: str = "eager",
    scheduler: Any = None,
    runs: int = 1,
) -> TeaCacheFit: ...


@overload
def calibrate(
    transformer: nn.Module,
    method: Literal["smoothcache"],
    run: Run,
    *,
    backend: str = "eager",
    scheduler: Any = None,
    runs: int = 1,
) -> SmoothCacheErrors: ...


@overload
def calibrate(
    transformer: nn.Module,
    method: Calibration[Report],
    run: Run,
    *,
    backend: str = "eager",
    scheduler: Any = None,
    runs: int = 1,
) -> Report: ...


def calibrate(
    transformer: nn.Module,
    method: object,
    run: Run,
    *,
    backend: str = "eager",
    scheduler: Any = None,
    runs: int = 1,
) -> Any:
    """Measure what a caching method needs to know of a model.

    ``run`` gets a drop-in for the transformer whose calls are the transformer's own,
    uncached, and measured; it generates with that, as often as it likes. A trajectory
    is one stream of one generation, and every trajectory counts the same in a mean.
    Afterwards the transformer is as it was, and so is the drop-in.

    Args:
        transformer: The transformer, in eval mode and without hooks.
        method: ``"magcache"``, ``"teacache"`` or ``"smoothcache"``, or a calibration
            with options, such as ``TeaCacheCalibration(degree=3)``.
        run: Generates with the module that it is given; it is called without gradients.
        backend: ``"eager"``, ``"inductor"`` or ``"reference"``.
        scheduler: The pipeline's scheduler, if its timesteps are to tell the steps.
        runs: How often `run` is called.

    Returns:
        `MagCacheRatios`, `TeaCacheFit` or `SmoothCacheErrors`.

    Raises:
        PolicyError: If the method is unknown, the model has not what it measures, `run`
            never calls the module, or its generations differ in length.
        BackendError: If the backend is unknown.
        CaptureError: If the module is in training mode, carries hooks, is compiled
            already, or cannot be captured.
    """
    calibration = _calibration(method)
    check_count("the number of runs", runs, 1)
    refuse_compiled(transformer)
    chosen = get_backend(backend)
    shown = chosen.capabilities.compiles
    target = ObservingTarget(Configuration(()), chosen, "auto", {}, shown, calibration)
    recorder = Recorder()
    observer = Observer(transformer, target, recorder, scheduler)
    with _observed(transformer, observer) as module, torch.no_grad():
        for _ in range(runs):
            run(module)
            observer.reset()
    if not recorder.trajectories:
        raise PolicyError(
            "nothing was measured: run(module) never called the module it was given. "
            "Set pipe.transformer = module in it, and generate."
        )
    return calibration.report(recorder.trajectories, type(transformer).__name__)


def _calibration(method: object) -> Calibration[Any]:
    if isinstance(method, str) and method in _METHODS:
        return _METHODS[method]()
    if isinstance(method, str) or not hasattr(method, "report"):
        raise PolicyError(
            f"{method!r} is no method that needs a calibration: know "
            f"{', '.join(_METHODS)}"
        )
    calibration: Calibration[Any] = method  # type: ignore[assignment]
    return calibration


@contextmanager
def _observed(transformer: nn.Module, observer: Observer) -> Iterator[nn.Module]:
    """The drop-in, which measures nothing any more at the end."""
    try:
        yield compiled_module(transformer, observer, Recipe(_plain))
    finally:
        observer.disable()


def _plain(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
    """What a copy of the drop-in is: the copied module, not measured."""
    return module
