"""Programs in ONNX Runtime: tensors are handed over where they are, not copied."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphcache.engine.formats import Entry
from graphcache.engine.onnx_names import HELD, element_type, input_name
from graphcache.errors import EngineError
from graphcache.program import InputKind, TensorType

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PACKAGES = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu"}
_SOMEWHERE = torch.empty(1)


def require(package: str, what: str = "the onnx format") -> Any:
    """A package that is needed.

    Args:
        package: Its name.
        what: What needs it.

    Raises:
        EngineError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EngineError(
            f"{what} needs {package}, which cannot be imported ({error}): "
            "pip install 'graphcache[onnx]'"
        ) from error


def provider_of(device: torch.device) -> str:
    """What runs programs on a device.

    Raises:
        EngineError: If ONNX Runtime is missing, or cannot run on the device.
    """
    runtime = require("onnxruntime")
    provider = _PROVIDERS.get(device.type)
    if provider is None:
        raise EngineError(
            f"an onnx engine runs on {' and '.join(_PROVIDERS)}, not on {device.type}"
        )
    if provider not in runtime.get_available_providers():
        raise EngineError(
            f"onnxruntime {runtime.__version__} has no {provider}: "
            f"pip install {_PACKAGES[device.type]}"
        )
    return provider


def open_session(
    path: Path,
    device: torch.device,
    *,
    prepack: bool = False,
    optimize: bool = True,
    weights: Mapping[str, Any] | None = None,
    advice: str = "",
) -> Any:
    """Load a program.

    Args:
        path: The ONNX file; the weights file is beside it.
        device: Where it is to run.
        prepack: Whether it may copy weights into the order that its kernels like best;
            otherwise all programs read the one copy.
        optimize: Whether to make it fast, and not only to see that it runs.
        weights: Initializers in memory that is not the program's own, as `OrtValue`s;
            they must live as long as the session.
        advice: What to say if it cannot be loaded.

    Raises:
        EngineError: If ONNX Runtime is missing or cannot run the program.
    """
    provider = provider_of(device)
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait by spinning would keep the cores from the next program's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    levels = runtime.GraphOptimizationLevel
    if not optimize:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    settings = {"device_id": device.index or 0} if device.type == "cuda" else {}
    try:
        return runtime.InferenceSession(
            str(path),
            options,
            providers=[(provider, settings)],
            # What is folded of weights is a copy: nearly all of them, transposed.
            disabled_optimizers=[] if prepack else ["ConstantFolding"],
        )
    except Exception as error:
        raise EngineError(
            f"onnxruntime {runtime.__version__} cannot run {path.name} on {device}"
            f"{advice}: {error}"
        ) from error


def shared_weights(
    entry: Entry, tensors: Mapping[tuple[InputKind, str], Tensor]
) -> dict[str, Any]:
    """A program's weights as ONNX Runtime can use them where they are.

    Versions that cannot take tensors of others map the weights file themselves, and so
    do all of them for a weight that is not dense here.
    """
    take = getattr(require("onnxruntime").OrtValue, "from_dlpack", None)
    if take is None:
        return {}
    found = {}
    for given in entry.inputs:
        if given.kind in HELD:
            tensor = real(tensors[given.kind, given.target].detach())
            if tensor.is_contiguous():
                found[input_name(given)] = take(tensor)
    return found


def real(tensor: Tensor) -> Tensor:
    """The tensor as ONNX has it: complex numbers are pairs."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@dataclass(frozen=True)
class _Slot:
    """One input or output that is bound at each call."""

    name: str
    position: int
    type: TensorType
    element: int


def _slot(name: str, position: int, type_: TensorType | None) -> _Slot:
    # A size that depends on data is refused when the program is written.
    assert type_ is not None
    return _Slot(name, position, type_, element_type(type_.dtype))


class OnnxExecutable:
    """A program that reads its inputs, and writes its outputs, where torch has them."""

    def __init__(self, session: Any, entry: Entry, weights: Mapping[str, Any]) -> None:
        """Prepare the binding of inputs and outputs.

        Args:
            session: The loaded program.
            entry: What it takes and gives.
            weights: What it was opened with, to be kept alive.
        """
        self._session = session
        self._weights = weights
        self._program = entry.name
        self._inputs = [
            _slot(input_name(given), index, type_)
            for index, (given, type_) in enumerate(
                zip(entry.inputs, entry.types, strict=True)
            )
            if given.kind not in HELD
        ]
        names = [output.name for output in session.get_outputs()]
        self._outputs = [
            _slot(name, index, type_)
            for index, (name, type_) in enumerate(
                zip(names, entry.outputs, strict=True)
            )
        ]

    def __call__(self, values: Sequence[Any]) -> Sequence[Tensor]:
        """Run the program.

        Raises:
            EngineError: If an input has another type than the program was written for.
        """
        binding = self._session.io_binding()
        # Alive until the program has run: the binding knows addresses only.
        held = [self._given(slot, values[slot.position]) for slot in self._inputs]
        for slot, tensor in zip(self._inputs, held, strict=True):
            binding.bind_input(*_address(slot, tensor))
        outputs = [_empty(slot.type) for slot in self._outputs]
        for slot, tensor in zip(self._outputs, outputs, strict=True):
            binding.bind_output(*_address(slot, tensor))
        if any(tensor.is_cuda for tensor in held):
            # ONNX Runtime has a stream of its own.
            torch.cuda.current_stream().synchronize()
        self._session.run_with_iobinding(binding)
        return outputs

    def _given(self, slot: _Slot, value: Tensor) -> Tensor:
        if value.shape != slot.type.shape or value.dtype != slot.type.dtype:
            raise EngineError(
                f"{self._program} was written for {slot.name}: {slot.type}, and got "
                f"{TensorType.of(value)}: export for this call"
            )
        return value.detach().resolve_conj().resolve_neg().contiguous()


def _empty(type_: TensorType) -> Tensor:
    return torch.empty(type_.shape, dtype=type_.dtype, device=type_.device)


def _address(slot: _Slot, tensor: Tensor) -> tuple[Any, ...]:
    """How a binding is told of a tensor."""
    tensor = real(tensor)
    device = tensor.device
    where = device.type, device.index or 0
    # A tensor without elements is nowhere, which a binding does not take.
    place = tensor.data_ptr() or _SOMEWHERE.data_ptr()
    return slot.name, *where, slot.element, tuple(tensor.shape), place
