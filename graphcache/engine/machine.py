"""The machine: what compiled code depends on, and whether it is here."""

from __future__ import annotations

import platform

import torch
from packaging.version import InvalidVersion, Version

import graphcache
from graphcache.engine.manifest import Target
from graphcache.errors import EngineError


def target_of(device: torch.device) -> Target:
    """This machine, as far as code for a device depends on it."""
    return Target(
        torch=str(torch.__version__),
        graphcache=graphcache.__version__,
        device=device.type,
        machine=_machine(device),
    )


def check_target(target: Target, device: torch.device, *, portable: bool) -> None:
    """Refuse an engine that was built for something else.

    Args:
        target: What it was built for.
        device: Where it is to run.
        portable: Whether its files do not depend on torch and the architecture.

    Raises:
        EngineError: Saying what differs.
    """
    if device.type != target.device:
        raise EngineError(
            f"the engine was built for {target.device} and cannot run on {device}: "
            "export it on the device that is to run it"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError("the engine was built for cuda, and torch finds no GPU here")
    if portable:
        return
    if _release(target.torch) != _release(torch.__version__):
        raise EngineError(
            f"the engine was built with torch {target.torch}, and this is "
            f"{torch.__version__}: code of one release does not run under another. "
            "Export it anew, or install that release"
        )
    here = _machine(device)
    if target.machine != here:
        raise EngineError(
            f"the engine was built for {target.machine}, and this is {here}: export "
            "it on the kind of machine that is to run it"
        )


def _release(version: str) -> tuple[int, ...]:
    try:
        return Version(version).release[:2]
    except InvalidVersion as error:
        raise EngineError(
            f"the engine was built with torch {version!r}, which is no version: "
            "export it anew"
        ) from error


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
