"""What happened at run time, counted where it happens."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MAX_STEPS = 10_000


@dataclass(frozen=True)
class StepRecord:
    """One call of the compiled module.

    Attributes:
        stream: Name of the stream.
        index: Calls of the stream before this one, since its reset.
        timestep: In the scheduler's units; None if not known.
        computed: By policy name, whether its regions were computed.
        scores: By policy name, what a decision of the graph measured; none where it
            was forced.
        request: Name of the request: the one that it was given, or that of the thread
            or task that called.
    """

    stream: str
    index: int
    timestep: float | None
    computed: dict[str, bool]
    scores: dict[str, float] = field(default_factory=dict)
    request: str | None = None


@dataclass
class Statistics:
    """Counters of one compiled module, over all of its requests.

    They add up whatever threads count at once.

    Attributes:
        steps: Every call, oldest first (the last 10 000).
        computed: Regions computed, by policy name.
        reused: Regions reused, by policy name.
        regions: Module paths of the gated regions, by policy name, in graph order.
        captures: Times the module was traced.
        graphs_compiled: Graphs given to the backend.
        compile_seconds: Time spent tracing, rewriting and compiling.
        host_reads: Scores of the graph that the host read: one per dynamic decision
            and step.
        device_reads: Timesteps, and schedules of them, read from a tensor on a device
            other than the CPU.
        resets: Streams that were reset.
        uncompiled: Calls of the module as it is, because a guider had hooked it.
        planned_bytes: Bytes of buffers that one stream needs, by the latest plan.
        peak_buffer_bytes: Most bytes of buffers held at once, measured.
    """

    steps: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=_MAX_STEPS))
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    regions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    captures: int = 0
    graphs_compiled: int = 0
    compile_seconds: float = 0.0
    host_reads: int = 0
    device_reads: int = 0
    resets: int = 0
    uncompiled: int = 0
    planned_bytes: int = 0
    peak_buffer_bytes: int = 0
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, Any]:
        # A copy has a lock of its own.
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def count(
        self, *, device_reads: int = 0, host_reads: int = 0, resets: int = 0
    ) -> None:
        """Count reads and resets."""
        if device_reads or host_reads or resets:
            with self._lock:
                self.device_reads += device_reads
                self.host_reads += host_reads
                self.resets += resets

    def hold(self, held: int) -> None:
        """Take in how many bytes of buffers are held now."""
        with self._lock:
            self.peak_buffer_bytes = max(self.peak_buffer_bytes, held)

    def record(
        self,
        record: StepRecord,
        regions: Mapping[str, tuple[str, ...]],
        computed: Mapping[str, int] | None = None,
    ) -> None:
        """Count one call.

        Args:
            record: The call.
            regions: Regions by policy.
            computed: How many of them were computed; all of a policy's or none, by the
                record, if it is not given.
        """
        with self._lock:
            self.steps.append(record)
            for policy, any_computed in record.computed.items():
                every = len(regions[policy])
                count = every * any_computed if computed is None else computed[policy]
                for counter, number in (
                    (self.computed, count),
                    (self.reused, every - count),
                ):
                    if number:
                        counter[policy] += number

    def __str__(self) -> str:
        """A summary: the latest pass of every stream, then the counts.

        ``#`` is a step at which any region of the policy was computed, ``.`` one at
        which all were reused.
        """
        with self._lock:
            steps = [*self.steps]
        return "\n".join([*_timelines(steps), *self._counts()])

    def _counts(self) -> Iterator[str]:
        policies = dict.fromkeys([*self.regions, *self.computed, *self.reused])
        for policy in policies:
            reused = self.reused[policy]
            total = reused + self.computed[policy]
            share = f" ({100 * reused / total:.0f} %)" if total else ""
            yield f"{policy}: {reused} of {total} regions reused{share}"
        yield (
            f"{_many(len(self.steps), 'step')}, {_many(self.resets, 'reset')}; "
            f"{_many(self.captures, 'capture')}, "
            f"{_many(self.graphs_compiled, 'graph')} compiled"
        )
        if self.uncompiled:
            yield f"{_many(self.uncompiled, 'call')} uncompiled, hooked by a guider"
        yield (
            f"read by the host: {_many(self.host_reads, 'score')}, "
            f"{_many(self.device_reads, 'device tensor')}"
        )
        yield (
            f"buffers: {self.planned_bytes:,} bytes per stream planned, "
            f"{self.peak_buffer_bytes:,} held at most"
        )

    def clear(self) -> None:
        """Forget the calls; what was captured and compiled stays counted."""
        with self._lock:
            self.steps.clear()
            self.computed.clear()
            self.reused.clear()
            self.host_reads = self.device_reads = 0
            self.resets = self.uncompiled = self.peak_buffer_bytes = 0


def _timelines(steps: Sequence[StepRecord]) -> Iterator[str]:
    """One line per stream and policy: the steps since the stream last began.

    A stream is called by its request as well, if there are several.
    """
    several = len({step.request for step in steps}) > 1
    latest: dict[str, dict[str, str]] = {}
    for step in steps:
        name = f"{step.request}: {step.stream}" if several else step.stream
        if step.index == 0 or name not in latest:
            latest[name] = {}
        lines = latest[name]
        for policy, computed in step.computed.items():
            lines[policy] = lines.get(policy, "") + ("#" if computed else ".")
    names = max(map(len, latest), default=0)
    policies = max((len(p) for lines in latest.values() for p in lines), default=0)
    for stream, lines in latest.items():
        for policy, line in lines.items():
            yield f"{stream:{names}}  {policy:{policies}}  {line}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
