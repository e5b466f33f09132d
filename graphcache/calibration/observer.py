"""The observing runner: the module's own steps, measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

from torch import Tensor, nn

from graphcache.calibration.trajectory import Recorder
from graphcache.capture import Capture, capture
from graphcache.errors import PolicyError
from graphcache.passes.manager import run_passes
from graphcache.passes.observe import Observation
from graphcache.passes.pipeline import observe_pipeline
from graphcache.runtime.compiling import CompiledLoop, Target
from graphcache.runtime.instances import bare
from graphcache.runtime.loop import Loop
from graphcache.runtime.runner import Runner
from graphcache.runtime.segment import Frame, run_route
from graphcache.runtime.stats import StepRecord
from graphcache.runtime.streams import Stream
from graphcache.signature import Call


@dataclass(frozen=True)
class ObservingTarget(Target):
    """What to compile for, where nothing is cached.

    Attributes:
        observation: What is measured.
    """

    observation: Observation

    def rewrite(self, module: nn.Module, call: Call, context: str | None) -> Capture:
        """Capture a module and measure it.

        Raises:
            CaptureError: If the module cannot be captured.
            PolicyError: If the graph has not what is measured.
        """
        captured = capture(module, call)
        passes = observe_pipeline(self.observation)
        program = run_passes(captured.program, passes, label="observe")
        return replace(captured, program=program)


class Observer(Runner):
    """Runs one module uncached and records what is measured of every step.

    Streams and steps are told apart as for a cache, by the same clock. Disabled, it is
    the module itself.

    Args:
        module: The original module, in eval mode.
        target: What is measured, and the backend.
        recorder: Where measurements go.
        scheduler: Attached scheduler, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        target: ObservingTarget,
        recorder: Recorder,
        scheduler: Any = None,
    ) -> None:
        super().__init__(module, target, scheduler)
        self.recorder = recorder

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of the module."""
        if not self.enabled:
            return bare(self.module)(*args, **kwargs)
        return super().__call__(args, kwargs)

    def enable(self, config: object = None) -> NoReturn:
        """Refuse: there is no cache here."""
        raise PolicyError(
            "this module was made to be measured and caches nothing: pass the original "
            "to graphcache.compile"
        )

    def disable(self) -> None:
        """Measure nothing from now on, and let go of what was captured."""
        super().disable()
        self._forget_captures()

    def run(self, call: Call, loop: Loop, stream: Stream) -> list[Tensor]:
        """Run the step, and record what it measures."""
        assert isinstance(loop, CompiledLoop)
        step = stream.step
        frame = Frame(call.tensors, stream, step, {}, {}, {}, loop.device)
        results = run_route(loop.route({}), frame)
        self.recorder.add(stream.name, step, loop.source.program, frame.lives)
        self.stats.record(StepRecord(stream.name, step.index, step.timestep, {}), {})
        stream.index += 1
        return results
