"""The packages of the two flavours of TensorRT, imported when they are needed.

==========  ===================  ================  ====================================
flavour     builds with          runs with         for
==========  ===================  ================  ====================================
tensorrt    torch-tensorrt       tensorrt          every GPU; built on the GPU it is for
rtx         torch-tensorrt-rtx   tensorrt_rtx      GeForce and workstation GPUs; may be
                                                   built for another one
==========  ===================  ================  ====================================

Both distributions give one module, ``torch_tensorrt``, so that one can be installed.
What goes through ONNX is built by TensorRT itself and needs neither.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from graphcache.errors import GraphCacheError

RUNTIMES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""The module that runs an engine, by flavour."""
_DISTRIBUTIONS = {"rtx": "torch-tensorrt-rtx", "tensorrt": "torch-tensorrt"}
_INSTALL = "pip install torch-tensorrt, or torch-tensorrt-rtx for a GeForce or RTX GPU"


@dataclass(frozen=True)
class Builder:
    """What builds engines from networks.

    Attributes:
        flavour: ``"tensorrt"`` or ``"rtx"``.
        version: Of TensorRT itself.
        tensorrt: The module.
    """

    flavour: str
    version: str
    tensorrt: ModuleType


@dataclass(frozen=True)
class Compiler(Builder):
    """What builds engines from graphs.

    Attributes:
        torch_tensorrt: The module that converts graphs to networks.
    """

    torch_tensorrt: ModuleType

    def part(self, name: str) -> Any:
        """A module inside torch_tensorrt."""
        return importlib.import_module(f"torch_tensorrt.{name}")


def installed_flavour() -> str | None:
    """The flavour that is installed for building; None if there is none."""
    for flavour, distribution in _DISTRIBUTIONS.items():
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return flavour
    return None


def load_compiler(error: type[GraphCacheError]) -> Compiler:
    """Import what builds engines.

    Args:
        error: What to raise.

    Raises:
        GraphCacheError: Of type `error`, if it is not installed or cannot be imported
            here; the message says what to do.
    """
    flavour = installed_flavour()
    if flavour is None:
        raise error(f"torch_tensorrt is not installed: {_INSTALL}")
    try:
        torch_tensorrt = importlib.import_module("torch_tensorrt")
        # Deeper in the package than its own import goes.
        importlib.import_module("torch_tensorrt.dynamo.conversion._TRTInterpreter")
        tensorrt = importlib.import_module(RUNTIMES[flavour])
    except (ImportError, OSError, RuntimeError, AssertionError) as cause:
        raise error(
            f"{_DISTRIBUTIONS[flavour]} is installed and cannot be imported: {cause}. "
            "It needs the version that was made for this torch, a CUDA build of torch "
            "and a GPU"
        ) from cause
    return Compiler(flavour, tensorrt.__version__, tensorrt, torch_tensorrt)


def load_builder(error: type[GraphCacheError]) -> Builder:
    """Import what builds engines from networks, of the flavour that is installed.

    Args:
        error: What to raise.

    Raises:
        GraphCacheError: Of type `error`, if it is not installed or cannot be imported;
            the message says what to do.
    """
    found = [name for name, module in RUNTIMES.items() if _is_installed(module)]
    # Where both are, torch_tensorrt says which.
    flavour = installed_flavour() or next(iter(found), None)
    if flavour is None:
        raise error(
            "tensorrt is not installed: pip install tensorrt, or tensorrt-rtx for a "
            "GeForce or RTX GPU"
        )
    tensorrt = load_runtime(flavour, error)
    return Builder(flavour, tensorrt.__version__, tensorrt)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def load_runtime(flavour: str, error: type[GraphCacheError]) -> ModuleType:
    """Import what runs the engines of a flavour.

    Args:
        flavour: ``"tensorrt"`` or ``"rtx"``.
        error: What to raise.

    Raises:
        GraphCacheError: Of type `error`, if it cannot be imported.
    """
    name = RUNTIMES[flavour]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as cause:
        raise error(
            f"an engine of the {flavour} flavour needs {name}, which cannot be "
            f"imported: {cause}. pip install {name.replace('_', '-')}"
        ) from cause
