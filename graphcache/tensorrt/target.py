"""The GPU that an engine is built for."""

from __future__ import annotations

from typing import Any

from graphcache.errors import BackendError
from graphcache.tensorrt.packages import Builder


def aim(config: Any, capability: str, builder: Builder) -> None:
    """Build for a GPU that need not be here.

    Args:
        config: Of the build.
        capability: Of the GPU, such as ``"8.9"``.
        builder: The package, of the RTX flavour.

    Raises:
        BackendError: If the package knows no such GPU; the message lists those it does.
    """
    known = builder.tensorrt.ComputeCapability
    target = getattr(known, f"SM{capability.replace('.', '')}", None)
    if target is None:
        names = [member for member in dir(known) if member.startswith("SM")]
        raise BackendError(
            f"tensorrt {builder.version} builds for no compute capability "
            f"{capability}: it knows {', '.join(names)}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(target, 0)
