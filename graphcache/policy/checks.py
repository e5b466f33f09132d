"""Checks of what users give: each raises a `PolicyError` that says what to give."""

from __future__ import annotations

from typing import TypeGuard

import torch

from graphcache.errors import PolicyError


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_threshold(value: object) -> None:
    """Raise unless `value` is a number from 0 to infinity."""
    if not is_number(value) or not value >= 0:
        raise PolicyError(
            f"a threshold must be a number of at least 0, not {value!r}: 0 always "
            "computes, infinity computes the first step alone"
        )


def check_count(what: str, value: object, least: int, most: int | None = None) -> None:
    """Raise unless `value` is an integer of at least `least` and at most `most`."""
    integral = isinstance(value, int) and not isinstance(value, bool)
    low = integral and value >= least  # type: ignore[operator]
    if not low or (most is not None and value > most):  # type: ignore[operator]
        kind = "a positive integer" if least == 1 else f"an integer from {least}"
        limit = "" if most is None else f" to {most}"
        raise PolicyError(f"{what} must be {kind}{limit}, not {value!r}")


def check_window(window: tuple[float, float]) -> None:
    """Raise unless `window` is an ordered pair of numbers."""
    try:
        low, high = window
        ordered = low < high
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"a timestep window is a pair (low, high), not {window!r}"
        ) from error
    if not ordered:
        raise PolicyError(
            f"the timestep window {window!r} is not ordered: low must be below high "
            "(timesteps count down from about 1000 to 0)"
        )


def check_number(what: str, value: object, low: float, high: float) -> None:
    """Raise unless `value` is a number from `low` to `high`."""
    if not is_number(value) or not low <= value <= high:
        raise PolicyError(
            f"{what} must be a number from {low} to {high}, not {value!r}"
        )


def check_float_dtype(what: str, value: object) -> None:
    """Raise unless `value` is a floating-point dtype, or None."""
    known = value is None or isinstance(value, torch.dtype)
    if not known or (isinstance(value, torch.dtype) and not value.is_floating_point):
        raise PolicyError(
            f"{what} must be a floating-point torch.dtype or None, not {value!r}"
        )
