"""What MagCache, TeaCache and SmoothCache have to know of the moving-digits model.

It is measured on clips of all digits with other noise than the benchmark's own, and
kept in a file beside the results, so that a benchmark is the same without measuring.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe_machine
from graphcache.calibration import SmoothCacheErrors, calibrate
from graphcache.demo import Generator, Settings

FILE = Path(__file__).parent / "results" / "calibration_moving_digits.json"
CLIPS = 10
"""One of each digit."""
SEEDS = (1001, 1002)
_DIGITS = 6


@dataclass(frozen=True)
class Calibrations:
    """What was measured, for one number of steps.

    Attributes:
        steps: Denoising steps.
        ratios: For MagCache, one per step.
        coefficients: For TeaCache, highest power first.
        misfit: Root mean square of what TeaCache's polynomial is off.
        drift: For SmoothCache.
    """

    steps: int
    ratios: tuple[float, ...]
    coefficients: tuple[float, ...]
    misfit: float
    drift: SmoothCacheErrors

    def as_data(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        drift = self.drift
        return {
            "magcache": {"ratios": list(self.ratios)},
            "teacache": {
                "coefficients": list(self.coefficients),
                "root_mean_square_error": self.misfit,
            },
            "smoothcache": {
                "model": drift.model,
                "layers": drift.layers,
                "trajectories": drift.trajectories,
                "errors": drift.errors,
            },
        }


def from_data(data: dict[str, Any]) -> Calibrations:
    """What `save` wrote."""
    drift = data["smoothcache"]
    return Calibrations(
        steps=data["settings"]["steps"],
        ratios=tuple(data["magcache"]["ratios"]),
        coefficients=tuple(data["teacache"]["coefficients"]),
        misfit=data["teacache"]["root_mean_square_error"],
        drift=SmoothCacheErrors(
            drift["errors"], drift["model"], drift["layers"], drift["trajectories"]
        ),
    )


def load(steps: int, file: Path = FILE) -> Calibrations | None:
    """The stored measurements, if there are any for this number of steps."""
    if not file.is_file():
        return None
    found = from_data(json.loads(file.read_text()))
    return found if found.steps == steps else None


def save(found: Calibrations, file: Path = FILE) -> None:
    """Write them with how they were made."""
    settings = _settings(found.steps)
    data = {
        "benchmark": "calibration_moving_digits",
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "machine": describe_machine(torch.device("cpu")),
        "settings": {
            "steps": settings.steps,
            "clips": settings.clips,
            "guidance": settings.guidance,
            "seeds": list(SEEDS),
        },
        **found.as_data(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=1) + "\n")


def measure(steps: int, notify: Callable[[str], None]) -> Calibrations:
    """Measure all three, uncached and eager.

    Args:
        steps: Denoising steps.
        notify: Told what is being done.
    """
    generator = Generator.load(_settings(steps))
    plain = generator.pipe.transformer

    def run(module: nn.Module) -> None:
        generator.pipe.transformer = module
        for seed in SEEDS:
            generator.settings = replace(generator.settings, seed=seed)
            generator.generate()

    notify("calibrating MagCache")
    scheduler = generator.pipe.scheduler
    ratios = calibrate(plain, "magcache", run, scheduler=scheduler)
    notify("calibrating TeaCache")
    fit = calibrate(plain, "teacache", run, scheduler=scheduler)
    notify("calibrating SmoothCache")
    drift = calibrate(plain, "smoothcache", run, scheduler=scheduler)
    return Calibrations(
        steps=steps,
        ratios=_rounded(ratios.ratios),
        coefficients=_rounded(fit.coefficients),
        misfit=_rounded([fit.error])[0],
        drift=replace(
            drift,
            errors={
                kind: [list(_rounded(row)) for row in table]
                for kind, table in drift.errors.items()
            },
        ),
    )


def _settings(steps: int) -> Settings:
    return Settings(steps=steps, clips=CLIPS, seed=SEEDS[0])


def _rounded(values: list[float]) -> tuple[float, ...]:
    """To a few digits: what is stored and what was measured are the same."""
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
