"""The host loop over an engine: the calls that it is good for, and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from graphcache.engine.calls import difference, entries, likeness
from graphcache.engine.manifest import CallEntry
from graphcache.errors import EngineError
from graphcache.runtime.loop import Loop
from graphcache.runtime.stepper import Stepper
from graphcache.runtime.thresholds import Thresholds
from graphcache.signature import Call, CallKey, CallSignature


@dataclass(frozen=True)
class Good:
    """A loop and the calls that it is good for."""

    call: tuple[CallEntry, ...]
    loop: Loop


class EngineStepper(Stepper):
    """Runs the loops of an engine.

    Attributes:
        loops: What the engine holds.
        device: Where it runs.

    Args:
        signature: Of the forward that was compiled.
        thresholds: By policy name.
        device: Where it runs.
        scheduler: Attached scheduler, or None.
        callback: Returns the current timestep, or None.

    Raises:
        PolicyError: If the scheduler has no timesteps.
    """

    def __init__(
        self,
        signature: CallSignature,
        thresholds: Thresholds,
        device: torch.device,
        scheduler: Any = None,
        callback: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(signature, thresholds, scheduler, callback)
        self.loops: tuple[Good, ...] = ()
        self.device = device
        self._known: dict[CallKey, list[Loop]] = {}

    def find(self, call: Call) -> Loop:
        """The loop that is good for a call.

        Raises:
            EngineError: If none is; the message says what differs.
        """
        found = self._known.get(call.key)
        if found is None:
            found = self._known[call.key] = self._like(call)
        for loop in found:
            if loop.values.hold(call):
                return loop
        read = {call.paths[e.index] for loop in found for e in loop.values.entries}
        raise EngineError(
            f"the values of {', '.join(sorted(read))} were compiled into the engine, "
            "and these are others: export it with a call that has them"
        )

    def _like(self, call: Call) -> list[Loop]:
        for path, tensor in zip(call.paths, call.tensors, strict=True):
            same_type = tensor.device.type == self.device.type
            if same_type and tensor.device != self.device:
                raise EngineError(
                    f"{path} is on {tensor.device}, and the engine runs on "
                    f"{self.device}: move it there"
                )
        given = entries(call.values)
        found = [good.loop for good in self.loops if good.call == given]
        if found:
            return found
        nearest = max(self.loops, key=lambda good: likeness(good.call, given))
        raise EngineError(
            f"{difference(nearest.call, given)}. An engine holds the shapes that it "
            f"was exported with ({len(self.loops)}): call the compiled module with "
            "these as well before it is exported"
        )
