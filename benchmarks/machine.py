"""What a benchmark ran on, as data to store beside its results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("graphcache", "torch", "diffusers", "triton")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, system, package versions, and the GPU if one is used.

    Args:
        device: Where the benchmark runs.

    Returns:
        Plain values, ready for JSON; memory sizes in bytes.
    """
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "device": str(device),
        "gpu": _describe_gpu(device) if device.type == "cuda" else None,
    }


def cpu_model() -> str:
    """The processor's name for itself, or its architecture where it has none."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter and are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def summary(machine: dict[str, Any]) -> str:
    """One line of it, for a table's caption."""
    versions = machine["packages"]
    gpu = machine["gpu"]
    parts = [
        gpu["name"] if gpu else f"{machine['cpu']} ({machine['cpu_capability']})",
        f"{machine['cores']} cores, {machine['threads']} threads",
        f"Python {machine['python']}",
        *(f"{name} {versions[name]}" for name in versions),
    ]
    return ", ".join(parts)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _driver_version() -> str | None:
    """Of the NVIDIA kernel module; None where the system does not say."""
    info = Path("/proc/driver/nvidia/version")
    if not info.is_file():
        return None
    words = info.read_text().splitlines()[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)
