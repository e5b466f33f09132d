"""Runs the real builder of TensorRT for RTX on a machine without a GPU.

It patches torch for the whole process, so it is a script of its own:
``python -m tests.backends.tensorrt_on_cpu FOLDER FUNCTION ARGUMENTS`` calls a function
of `tests.backends.tensorrt_builds` with a stripped copy of torch_tensorrt in FOLDER,
and prints what it returns as JSON.

torch_tensorrt asks the GPU for its properties when it is imported, and its shared
libraries need CUDA's. Converters and builder need neither.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import torch

RTX = "torch-tensorrt-rtx"


def missing() -> str | None:
    """Why nothing can be built here; None if it can."""
    try:
        importlib.metadata.version(RTX)
    except importlib.metadata.PackageNotFoundError:
        return f"needs {RTX} (pip install --no-deps) and tensorrt-rtx"
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return "needs tensorrt-rtx"
    return None


def copy_package(folder: Path) -> None:
    """Copy torch_tensorrt, without its shared libraries."""
    found = importlib.metadata.distribution(RTX)
    for entry in found.files or []:
        if entry.suffix == ".so" or entry.parts[0] == "..":
            continue
        source, place = Path(str(found.locate_file(entry))), folder / entry
        if source.suffix in (".py", ".json", ".txt") or "dist-info" in str(entry):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)


def pretend_a_gpu() -> None:
    """Answer what torch_tensorrt asks of a GPU when it is imported."""
    properties = types.SimpleNamespace(
        name="none", major=8, minor=9, total_memory=24 << 30, multi_processor_count=100
    )
    answers: dict[str, Any] = {
        "get_device_capability": (8, 9),
        "current_device": 0,
        "get_device_properties": properties,
        "mem_get_info": (20 << 30, 24 << 30),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})


def call(folder: Path, function: str, *arguments: Any) -> Any:
    """Call a function of `tests.backends.tensorrt_builds` in a process of its own.

    Args:
        folder: Holds the stripped copy.
        function: Its name.
        *arguments: JSON.
    """
    given = json.dumps(arguments)
    command = [sys.executable, "-m", __name__, str(folder), function, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """What the process does."""
    folder, function, arguments = sys.argv[1:]
    sys.path.insert(0, folder)
    pretend_a_gpu()
    builds = importlib.import_module("tests.backends.tensorrt_builds")
    print(json.dumps(getattr(builds, function)(*json.loads(arguments))))


if __name__ == "__main__":
    main()
