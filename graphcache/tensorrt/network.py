"""The network of an engine; importing this needs torch_tensorrt."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from graphcache.errors import BackendError
from graphcache.tensorrt.interface import Interface
from graphcache.tensorrt.options import BuildOptions
from graphcache.tensorrt.packages import Compiler
from graphcache.tensorrt.target import aim

_conversion = "torch_tensorrt.dynamo.conversion"
_interpreter: Any = importlib.import_module(f"{_conversion}._TRTInterpreter")
_utilities: Any = importlib.import_module(f"{_conversion}.converter_utils")
_enums: Any = importlib.import_module("torch_tensorrt._enums")


class Network(_interpreter.TRTInterpreter):  # type: ignore[misc]
    """A network converted from a graph, and built into bytes.

    Args:
        lowered: What to convert.
        specs: An input of torch_tensorrt for each placeholder.
        interface: What the engine's inputs and outputs are to be.
        settings: Of torch_tensorrt.
        compiler: The packages.
    """

    def __init__(
        self,
        lowered: fx.GraphModule,
        specs: Sequence[Any],
        interface: Interface,
        settings: Any,
        compiler: Compiler,
    ) -> None:
        self.compiler = compiler
        self.trt: Any = compiler.tensorrt
        self.interface = interface
        dtypes = [port.dtype for port in interface.outputs]
        super().__init__(lowered, specs, dtypes, settings)

    def run_node(self, n: fx.Node) -> Any:
        """Convert a node, and hold the converter to the type of its value.

        Raises:
            BackendError: If the shape is another one.
        """
        value, wanted = super().run_node(n), n.meta.get("val")
        if n.op != "call_function" or not isinstance(wanted, Tensor):
            return value
        if not isinstance(value, self.trt.ITensor):
            return value
        if math.prod(value.shape) != wanted.numel():
            raise BackendError(
                f"the converter of {n.target} gives {tuple(value.shape)}, and PyTorch "
                f"{tuple(wanted.shape)}: {n.name}"
            )
        return self._typed(value, wanted)

    def _typed(self, value: Any, wanted: Tensor) -> Any:
        """A value in the shape and dtype that it has in PyTorch.

        Converters give numbers a dimension, and promote types by rules of their own.
        """
        if tuple(value.shape) != tuple(wanted.shape):
            layer = self.ctx.net.add_shuffle(value)
            layer.reshape_dims = tuple(wanted.shape)
            value = layer.get_output(0)
        dtype = self._trt_dtype(wanted.dtype)
        if value.dtype != dtype:
            value = self.ctx.net.add_cast(value, dtype).get_output(0)
        return value

    def output(self, target: str, args: Any, kwargs: Any) -> list[Any]:
        """Mark the outputs, each a tensor of its own.

        TensorRT has no output twice and none that is an input: it gets a copy.
        """
        taken = {self.ctx.net.get_input(i).name for i in range(self.ctx.net.num_inputs)}
        distinct: list[Any] = []
        for value in args[0]:
            tensor = _utilities.get_trt_tensor(
                self.ctx, value, f"{target}_{len(distinct)}"
            )
            if tensor.name in taken:
                tensor = self.ctx.net.add_identity(tensor).get_output(0)
            taken.add(tensor.name)
            distinct.append(tensor)
        marked: list[Any] = super().output(target, (tuple(distinct),), kwargs)
        return marked

    def _check(self) -> None:
        """Hold the network to its interface."""
        net, interface = self.ctx.net, self.interface
        found = [net.get_input(i) for i in range(net.num_inputs)]
        found += [net.get_output(i) for i in range(net.num_outputs)]
        ports = [*(port for _, port in interface.inputs), *interface.outputs]
        types = {t.name: (tuple(t.shape), t.dtype) for t in found}
        wanted = {p.name: (p.shape, self._trt_dtype(p.dtype)) for p in ports}
        if types != wanted:
            differ = sorted({name for name, _ in types.items() ^ wanted.items()})
            raise BackendError(
                f"the network of tensorrt {self.compiler.version} is not the one that "
                f"was asked for: {', '.join(differ)}"
            )

    def _trt_dtype(self, dtype: torch.dtype) -> Any:
        return _enums.dtype._from(dtype).to(self.trt.DataType)

    def serialize(self, options: BuildOptions) -> bytes:
        """Convert and build.

        Raises:
            BackendError: If TensorRT refuses the network.
        """
        self._construct_trt_network_def()
        self._check()
        config = self._populate_trt_builder_config()
        # Classic TensorRT builds for the GPU that is here, and was checked to be right.
        if options.compute_capability is not None and self.compiler.flavour == "rtx":
            aim(config, options.compute_capability, self.compiler)
        timed = options.timing_cache_path
        if timed is not None:
            self._create_timing_cache(config, timed)
        log = self.compiler.torch_tensorrt.logging
        with log.errors():
            engine = self.builder.build_serialized_network(self.ctx.net, config)
        if engine is None:
            raise BackendError(_failure(options))
        self.ctx.clear_cpu_weights_reference_holder()
        if timed is not None:
            Path(timed).absolute().parent.mkdir(parents=True, exist_ok=True)
            self._save_timing_cache(config, str(Path(timed).absolute()))
        return bytes(memoryview(engine))


def _failure(options: BuildOptions) -> str:
    said = (
        "tensorrt could not build the engine; what it said is on the standard error "
        "output"
    )
    if options.decompose_attention:
        return said
    return (
        f"{said}. If it is about an attention, build that from products: "
        "options={'decompose_attention': True}"
    )
