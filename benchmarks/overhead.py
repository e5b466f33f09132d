"""graphcache from inside: host time per call, buffers touched, weights shared.

Reads the runtime's own tables, which are no public interface.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from benchmarks.timing import Samples, synchronize
from benchmarks.workload import Clock
from graphcache.backends.registry import Executable
from graphcache.policy.decisions import Signature
from graphcache.runtime.loop import Loop
from graphcache.runtime.runner import Runner
from graphcache.runtime.segment import Segment

TARGET_US = 50.0
TARGET_US_PER_BUFFER = 1.0
_FIRST_TIMESTEP = 799


@dataclasses.dataclass(frozen=True)
class HostTime:
    """Host time of one kind of call, besides the compiled code.

    Attributes:
        microseconds: Median.
        buffers: Cache buffers that such a call reads or writes.
    """

    microseconds: float
    buffers: int

    @property
    def target(self) -> float:
        """What it should be at most, in microseconds."""
        return TARGET_US + TARGET_US_PER_BUFFER * self.buffers


class Replay:
    """A compiled function that ran once and returns what it returned then."""

    def __init__(self, run: Executable) -> None:
        self.run = run
        self.outputs: Sequence[Tensor] | None = None

    def __call__(self, values: list[Any]) -> Sequence[Tensor]:
        """The outputs of the first call."""
        if self.outputs is None:
            self.outputs = self.run(values)
        return self.outputs


def runner_of(compiled: Any) -> Runner:
    """The runner behind what `graphcache.compile` returned."""
    runner: Runner = compiled._graphcache_runner
    return runner


def loops_of(compiled: Any) -> list[Loop]:
    """What it has captured and compiled, one per call signature."""
    return list(runner_of(compiled).loops)


@contextmanager
def replaying(compiled: Any) -> Iterator[None]:
    """Inside, every compiled function returns its first outputs at once."""
    runner = runner_of(compiled)
    loops = runner._captures.current
    original = list(loops._loops)
    runner.reset()
    loops._loops = [(key, _replayed(loop)) for key, loop in original]
    try:
        yield
    finally:
        loops._loops = original
        runner.reset()


def _segments(loop: Loop) -> dict[Signature, Segment]:
    """What runs under each combination of static decisions."""
    found = {}
    for signature, route in loop.routes.items():
        assert isinstance(route, Segment), "the graph takes a decision"
        found[signature] = route
    return found


def _replayed(loop: Loop) -> Loop:
    routes = {
        signature: dataclasses.replace(segment, run=Replay(segment.run))
        for signature, segment in _segments(loop).items()
    }
    return dataclasses.replace(loop, routes=routes)


def host_time_per_call(
    compiled: Any,
    kwargs: Mapping[str, Any],
    clock: Clock,
    calls: int = 600,
    context: str = "cond_uncond",
) -> dict[str, HostTime]:
    """Time calls whose compiled code is replaced by its own first outputs.

    What is left is everything else: the module call, the step context, the clock, the
    decision, binding weights and buffers, storing and unpacking.

    Args:
        compiled: What `graphcache.compile` returned, captured for `kwargs` already.
        kwargs: Arguments of one call.
        clock: Read by the policy's timestep callback; counts down from 799, one a
            call, so that an interval alternates inside its window.
        calls: How many to time, at most 600.
        context: Name of the stream.

    Returns:
        By kind of call, ``"compute"`` or ``"reuse"``.
    """
    samples = {"compute": Samples(), "reuse": Samples()}
    with replaying(compiled):
        for kind, seconds in _time_calls(compiled, kwargs, clock, calls, context):
            samples[kind].seconds.append(seconds)
        buffers = buffers_touched(compiled)
    return {
        kind: HostTime(found.median * 1e6, buffers[kind])
        for kind, found in samples.items()
    }


def buffers_touched(compiled: Any) -> dict[str, int]:
    """Cache buffers that a call reads or writes, by kind of call."""
    (loop,) = loops_of(compiled)
    return {
        "compute" if all(signature) else "reuse": _touched(variant)
        for signature, variant in _segments(loop).items()
        if all(signature) or not any(signature)
    }


def weights_shared(compiled: Any, module: nn.Module) -> bool:
    """Whether every weight that the compiled code is given is the module's own.

    By address: the tensors bound at each call, and no program constant as large as
    the smallest of the module's matrices.
    """
    own = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    smallest = min(p.nbytes for p in module.parameters() if p.dim() > 1)
    variants = [v for loop in loops_of(compiled) for v in _segments(loop).values()]
    bound = [tensor for variant in variants for tensor in variant.weights.read()]
    fixed = [tensor for variant in variants for tensor in variant.fixed]
    return bool(bound) and all(
        (
            all(tensor.data_ptr() in own for tensor in bound),
            all(tensor.nbytes < smallest for tensor in fixed),
        )
    )


def _time_calls(
    compiled: Any, kwargs: Mapping[str, Any], clock: Clock, calls: int, context: str
) -> Iterator[tuple[str, float]]:
    """Kind and seconds of each call, after one of each kind to record its outputs."""
    device = kwargs["hidden_states"].device
    compiled._reset_stateful_cache()
    stats = compiled.cache_stats
    for index in range(calls + 2):
        clock.timestep = _FIRST_TIMESTEP - index
        synchronize(device)
        started = time.perf_counter()
        with compiled.cache_context(context):
            compiled(**kwargs)
        seconds = time.perf_counter() - started
        computed = all(stats.steps[-1].computed.values())
        if index >= 2:
            yield ("compute" if computed else "reuse"), seconds


def _touched(variant: Segment) -> int:
    return len(variant.interface.buffers)
