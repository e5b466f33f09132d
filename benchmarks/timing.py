"""Timing: medians over interleaved rounds, and how much memory is held.

Machines are noisy and drift. Rows that are to be compared therefore take turns within
every round (A B C, A B C, ...), and ratios are ratios of medians over the rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Notify = Callable[[str], None]


@dataclass
class Samples:
    """Durations of one thing, in seconds."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile, in seconds; of one sample, that sample."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def as_milliseconds(self) -> dict[str, float | list[float]]:
        """Median, quartiles and every sample, in milliseconds, for JSON."""
        low, high = self.quartiles
        return {
            "median_ms": self.median * 1e3,
            "quartiles_ms": [low * 1e3, high * 1e3],
            "samples_ms": [value * 1e3 for value in self.seconds],
        }


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, until the device is done."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    notify: Notify = lambda _: None,
) -> dict[str, Samples]:
    """Time each function once per round, in order.

    Args:
        functions: What to time, by name; warmed up already.
        rounds: How often.
        device: Where they run.
        notify: Told the name of each before it runs.

    Returns:
        One sample per round for each name.
    """
    samples = {name: Samples() for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            notify(name)
            gc.collect()
            samples[name].seconds.append(timed(function, device))
    return samples


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that one call allocates beyond what is held before it.

    Returns:
        None on the CPU, whose allocator keeps no count.
    """
    if device.type != "cuda":
        function()
        return None
    before = held_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def held_bytes(device: torch.device) -> int:
    """Bytes of tensor storage alive on the device.

    On the CPU these are the distinct storages of all tensors that Python can reach;
    the CPU allocator keeps no count.
    """
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    # type(), not isinstance(): some objects answer __class__ with side effects.
    tensors = (obj for obj in gc.get_objects() if issubclass(type(obj), Tensor))
    return distinct_bytes(tensors, device)


def distinct_bytes(tensors: Iterable[Tensor], device: torch.device) -> int:
    """Bytes of the distinct storages behind real tensors on the device."""
    storages = {}
    for tensor in tensors:
        if isinstance(tensor, FakeTensor) or tensor.device.type != device.type:
            continue
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
