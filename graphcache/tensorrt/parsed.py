"""Building from an ONNX file: TensorRT's own parser makes the network.

It is the way for programs with conditions: each becomes a pair of layers in one engine,
of which TensorRT runs the branch that is taken. torch_tensorrt has no such thing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from graphcache.errors import BackendError
from graphcache.tensorrt.interface import Interface
from graphcache.tensorrt.options import BuildOptions
from graphcache.tensorrt.packages import Builder
from graphcache.tensorrt.target import aim

_TYPES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Parsed:
    """An engine.

    Attributes:
        data: Its bytes.
        conditions: How many conditions are in it.
    """

    data: bytes
    conditions: int


def build_parsed(
    path: Path, interface: Interface, options: BuildOptions, builder: Builder
) -> Parsed:
    """Build an engine from an ONNX file.

    Args:
        path: The file; weights that are not in it are beside it.
        interface: What the engine's inputs and outputs are to be, by name.
        options: How.
        builder: The package.

    Raises:
        BackendError: If TensorRT refuses the model or cannot build it; the message says
            what TensorRT said.
    """
    trt = builder.tensorrt
    listener = _listener(trt)
    listener.said.clear()
    making = trt.Builder(listener)
    network = making.create_network(_flags(trt))
    parser = trt.OnnxParser(network, listener)
    if not parser.parse_from_file(str(path)):
        raise BackendError(
            f"the ONNX parser of tensorrt {builder.version} refuses the program: "
            + _refusal(parser)
        )
    _check(network, interface, builder)
    layers = map(network.get_layer, range(network.num_layers))
    conditions = sum(layer.type == trt.LayerType.CONDITION for layer in layers)
    config = _config(making, options, builder)
    engine = making.build_serialized_network(network, config)
    if engine is None:
        raise BackendError(
            f"tensorrt {builder.version} could not build the engine: "
            + (listener.text() or "it did not say why")
        )
    _keep_timings(config, options, builder)
    return Parsed(bytes(memoryview(engine)), conditions)


@functools.cache
def _listener(trt: ModuleType) -> Any:
    """Hears what TensorRT says; there is one, as TensorRT keeps the first it is given.

    Args:
        trt: The module of the flavour.
    """

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        """Remembers errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            """What TensorRT calls."""
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.said.append(text.strip())

        def text(self) -> str:
            """What was said, each thing once."""
            return "; ".join(dict.fromkeys(self.said))

    return Listener()


def _flags(trt: Any) -> int:
    """Types are those of the graph: where that is a choice, it is made here."""
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strong is None else 1 << int(strong)


def _refusal(parser: Any) -> str:
    said = []
    for error in map(parser.get_error, range(parser.num_errors)):
        operator = error.node_operator() if hasattr(error, "node_operator") else ""
        said.append(f"{operator} {error.desc()}".strip())
    return "; ".join(dict.fromkeys(said))


def _check(network: Any, interface: Interface, builder: Builder) -> None:
    """Hold the network to its interface."""
    found = [network.get_input(i) for i in range(network.num_inputs)]
    found += [network.get_output(i) for i in range(network.num_outputs)]
    ports = [*(port for _, port in interface.inputs), *interface.outputs]
    types = {t.name: (tuple(t.shape), t.dtype) for t in found}
    known = builder.tensorrt.DataType
    wanted = {
        port.name: (port.shape, getattr(known, _TYPES.get(port.dtype, ""), None))
        for port in ports
    }
    if types == wanted:
        return
    differ = sorted({name for name, _ in types.items() ^ wanted.items()})
    said = [f"{n} is {types.get(n)} instead of {wanted.get(n)}" for n in differ]
    raise BackendError(
        f"the network that tensorrt {builder.version} makes of the ONNX model is not "
        f"the one that was asked for: {'; '.join(said)}"
    )


def _config(making: Any, options: BuildOptions, builder: Builder) -> Any:
    trt, config = builder.tensorrt, making.create_builder_config()
    if options.workspace_size:
        pool: Any = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace_size)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if not options.allows_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if builder.flavour == "rtx":
        # Classic TensorRT builds for the GPU that is here, and measures kernels there.
        if options.compute_capability is not None:
            aim(config, options.compute_capability, builder)
    elif options.timing_cache_path is not None:
        timed = Path(options.timing_cache_path)
        known = timed.read_bytes() if timed.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    return config


def _keep_timings(config: Any, options: BuildOptions, builder: Builder) -> None:
    if options.timing_cache_path is None or builder.flavour == "rtx":
        return
    timed = Path(options.timing_cache_path).absolute()
    timed.parent.mkdir(parents=True, exist_ok=True)
    timed.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
