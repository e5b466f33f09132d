"""Running an engine on torch's tensors, on torch's current stream."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphcache.errors import GraphCacheError
from graphcache.tensorrt.interface import Interface, Port


class EngineRunner:
    """An engine as a function of a program's inputs.

    It reads its inputs where they are, and gives memory of its own at every call: what
    one step returns is the cache of the next.

    Args:
        name: Of the program, for messages.
        data: The engine.
        interface: How its inputs and outputs are those of the program.
        lasting: Which inputs of the program are the same tensors at every call, unless
            somebody replaces one: its weights and constants.
        tensorrt: The module of the flavour that it was built with.
        device: A CUDA device.
        error: What to raise.

    Raises:
        GraphCacheError: Of type `error`, if TensorRT cannot take the engine here, or it
            is not one with this interface.
    """

    def __init__(
        self,
        name: str,
        data: bytes,
        interface: Interface,
        lasting: Collection[int],
        tensorrt: ModuleType,
        device: torch.device,
        error: type[GraphCacheError],
    ) -> None:
        self.name = name
        self.interface = interface
        self.device = device
        self.error = error
        # The engine needs its runtime, and the runtime its logger, while it lives.
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self._runtime = tensorrt.Runtime(self._logger)
        with torch.cuda.device(device):
            self._engine = self._runtime.deserialize_cuda_engine(data)
            if self._engine is None:
                raise error(
                    f"tensorrt {tensorrt.__version__} cannot load the engine {name}: "
                    "it was built by another version or for another GPU; export it anew"
                )
            self._check_names()
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise error(f"there is not enough memory to run the engine {name}")
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        inputs = interface.inputs
        self._lasting = [(i, port) for i, port in inputs if i in lasting]
        self._moving = [(i, port) for i, port in inputs if i not in lasting]
        self._placed: dict[int, tuple[Tensor, int]] = {}
        self._copies: dict[int, Tensor] = {}

    def __call__(self, values: Sequence[Any]) -> list[Tensor]:
        """One run.

        Args:
            values: One per input of the program.

        Raises:
            GraphCacheError: If TensorRT fails.
        """
        for index, port in self._lasting:
            self._keep(index, port, values[index])
        entered = [port.enter(values[i], self.device) for i, port in self._moving]
        outputs = [port.allocate(self.device) for port in self.interface.outputs]
        for (_, port), value in zip(self._moving, entered, strict=True):
            self._context.set_tensor_address(port.name, value.data_ptr())
        for port, output in zip(self.interface.outputs, outputs, strict=True):
            self._context.set_tensor_address(port.name, output.data_ptr())
        self._run()
        return self.interface.leave(values, outputs)

    def _keep(self, index: int, port: Port, value: Tensor) -> None:
        """Say where a weight is, if it is not where it was.

        There are hundreds of them, and this is done at every step.
        """
        placed = self._placed.get(index)
        if placed and placed[0] is value and placed[1] == value.data_ptr():
            return
        entered = port.enter(value, self.device)
        self._context.set_tensor_address(port.name, entered.data_ptr())
        if entered.data_ptr() == value.data_ptr():
            self._placed[index] = value, value.data_ptr()
        else:
            # A converted copy, which has to follow what is written to the weight.
            self._placed.pop(index, None)
            self._copies[index] = entered

    def _run(self) -> None:
        current = torch.cuda.current_stream(self.device)
        stream = current
        if current == torch.cuda.default_stream(self.device):
            # TensorRT waits for the device after a run on the default stream.
            stream = self._stream
            stream.wait_stream(current)
        with torch.cuda.device(self.device):
            done = self._context.execute_async_v3(stream.cuda_stream)
        if not done:
            raise self.error(
                f"tensorrt could not run {self.name}; what it said is on the standard "
                "error output"
            )
        if stream is not current:
            current.wait_stream(stream)

    def _check_names(self) -> None:
        engine = self._engine
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        ports = [port for _, port in self.interface.inputs]
        wanted = {port.name for port in (*ports, *self.interface.outputs)}
        if found != wanted:
            differ = ", ".join(sorted(found ^ wanted))
            raise self.error(
                f"the engine {self.name} is not the one of its manifest: {differ}"
            )
