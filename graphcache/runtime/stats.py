"""What happened at run time, counted where it happens."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_MAX_STEPS = 10_000


@dataclass(frozen=True)
class StepRecord:
    """One call of the compiled module.

    Attributes:
        stream: Name of the stream.
        index: Calls of the stream before this one, since its reset.
        timestep: In the scheduler's units; None if not known.
        computed: By policy name, whether its regions were computed.
    """

    stream: str
    index: int
    timestep: float | None
    computed: dict[str, bool]


@dataclass
class Statistics:
    """Counters of one compiled module.

    Attributes:
        steps: Every call, oldest first (the last 10 000).
        computed: Regions computed, by policy name.
        reused: Regions reused, by policy name.
        regions: Module paths of the gated regions, by policy name, in graph order.
        captures: Times the module was traced.
        graphs_compiled: Graphs given to the backend.
        compile_seconds: Time spent tracing, rewriting and compiling.
        device_reads: Timesteps read from a tensor on a device other than the CPU.
        resets: Streams that were reset.
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
    device_reads: int = 0
    resets: int = 0
    planned_bytes: int = 0
    peak_buffer_bytes: int = 0

    def record(
        self, record: StepRecord, regions: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Count one call."""
        self.steps.append(record)
        for policy, computed in record.computed.items():
            (self.computed if computed else self.reused)[policy] += len(regions[policy])

    def clear(self) -> None:
        """Forget the calls; what was captured and compiled stays counted."""
        self.steps.clear()
        self.computed.clear()
        self.reused.clear()
        self.device_reads = self.resets = self.peak_buffer_bytes = 0
