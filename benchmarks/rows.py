"""The rows of the benchmark: one transformer each, made independently of the others.

All rows share one set of weights. Each has its own module objects and, with
`isolate_recompiles`, its own cache of Dynamo's compiled code, so that no row's
recompilations or guards are paid by another.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch._inductor.compile_fx import compile_fx
from torch._inductor.utils import fresh_cache

import graphcache
from benchmarks.handwritten import Cached, IdealLoop, ReuseStep, cached_outputs
from benchmarks.timing import held_bytes, peak_bytes, timed
from benchmarks.workload import Step, Transformer, Workload, generate, pab_config

CONTEXT = "cond_uncond"


@dataclass
class CompileCounter:
    """Inductor as a Dynamo backend that counts.

    Attributes:
        graphs: Graphs compiled.
        calls: Calls of compiled graphs.
        seconds: Time in Inductor, without Dynamo's own.
    """

    graphs: int = 0
    calls: int = 0
    seconds: float = 0.0

    def __call__(
        self, module: fx.GraphModule, example_inputs: list[Any]
    ) -> Callable[..., Any]:
        """Compile one graph."""
        started = time.perf_counter()
        compiled: Any = compile_fx(module, example_inputs)
        self.seconds += time.perf_counter() - started
        self.graphs += 1

        def run(*values: Any) -> Any:
            self.calls += 1
            return compiled(*values)

        return run


@dataclass
class WarmUp:
    """What the first two generations of a row cost.

    Attributes:
        first_seconds: Of the first, in which everything is compiled.
        graphs: Graphs compiled.
        breaks: Graph breaks met.
        held_bytes: Tensor memory that the row holds after a generation, besides the
            weights: its cache.
        peak_bytes: Most memory that the second generation allocates, cache included;
            None on the CPU.
        calls: Calls of compiled graphs in the second generation.
        latents: What the second generation made.
    """

    first_seconds: float
    graphs: int
    breaks: int
    held_bytes: int
    peak_bytes: int | None
    calls: int
    latents: Tensor


@dataclass
class Row:
    """One way to run the loop.

    Attributes:
        label: For the table.
        step: What the loop calls.
        reset: Begins a generation.
        counter: Counts Dynamo's compilations; None where there are none.
        statistics: graphcache's own count; None elsewhere.
        reference: Key of the row whose latents these should be, up to rounding.
        parts: What other measurements need of it, by name.
    """

    label: str
    step: Step
    reset: Callable[[], None] = lambda: None
    counter: CompileCounter | None = None
    statistics: Callable[[], Any] | None = None
    reference: str | None = None
    parts: dict[str, Any] = field(default_factory=dict)

    def run(self, work: Workload) -> Tensor:
        """One generation."""
        self.reset()
        return generate(self.step, work)

    @property
    def graphs(self) -> int:
        """Graphs compiled so far."""
        counted = 0 if self.counter is None else self.counter.graphs
        if self.statistics is not None:
            counted += self.statistics().graphs_compiled
        return counted

    @property
    def calls(self) -> int:
        """Calls of compiled graphs so far."""
        counted = 0 if self.counter is None else self.counter.calls
        if self.statistics is not None:
            counted += len(self.statistics().steps)
        return counted


def warm_up(row: Row, work: Workload) -> WarmUp:
    """Run the row twice, compiling from an empty cache of compiled code."""
    breaks = _graph_breaks()
    before = held_bytes(work.device)
    with fresh_cache():
        first = timed(lambda: row.run(work), work.device)
    held = held_bytes(work.device) - before
    calls = row.calls
    latents: list[Tensor] = []
    row.reset()
    peak = peak_bytes(lambda: latents.append(row.run(work)), work.device)
    return WarmUp(
        first_seconds=first,
        graphs=row.graphs,
        breaks=_graph_breaks() - breaks,
        held_bytes=held,
        peak_bytes=peak,
        calls=row.calls - calls,
        latents=latents[0],
    )


def uncached_eager(work: Workload) -> Row:
    """The model as it is."""
    module = twin(work.transformer)
    return Row("uncached", in_context(module))


def uncached_compiled(work: Workload) -> Row:
    """The model under ``torch.compile(fullgraph=True)``."""
    counter = CompileCounter()
    module = dynamo(twin(work.transformer), counter, fullgraph=True)
    return Row(
        "uncached + compile",
        in_context(module),
        counter=counter,
        reference="eager",
    )


def hooks_eager(work: Workload) -> Row:
    """diffusers' PAB hooks."""
    module = hooked(work)
    return Row(
        "PAB hooks",
        in_context(module),
        reset=module._reset_stateful_cache,
    )


def hooks_compiled(work: Workload) -> Row:
    """diffusers' PAB hooks under ``torch.compile``, with its defaults."""
    return _hooks_compiled(work, "PAB hooks + compile", None)


def hooks_compiled_raised(work: Workload) -> Row:
    """The same, allowed as many graphs as there are steps."""
    return _hooks_compiled(
        work,
        "PAB hooks + compile, limit raised",
        len(work.timesteps) + 1,
    )


def ours(work: Workload) -> Row:
    """`graphcache.compile` with the hooks' own config."""
    module = graphcache.compile(
        twin(work.transformer), pab_config(work), progress=False
    )
    compiled: Any = module
    return Row(
        "graphcache",
        in_context(module),
        reset=compiled._reset_stateful_cache,
        statistics=lambda: compiled.cache_stats,
        reference="hooks",
        parts={"compiled": module},
    )


def ideal(work: Workload) -> Row:
    """The hand-written loop of `benchmarks.handwritten`.

    Raises:
        RuntimeError: If the hand-written step differs from the hooks' reused step.
    """
    counter = CompileCounter()
    cached = checked_cache(work)
    compute = dynamo(twin(work.transformer), counter, fullgraph=True)
    reuse = dynamo(ReuseStep(twin(work.transformer)), counter, fullgraph=True)
    loop = IdealLoop(compute, reuse, cached, work.computes())
    return Row(
        "ideal: hand-written + compile",
        loop,
        reset=loop.reset,
        counter=counter,
        parts={"compute": compute, "reuse": reuse, "cached": cached},
    )


ROWS: dict[str, Callable[[Workload], Row]] = {
    "eager": uncached_eager,
    "compile": uncached_compiled,
    "hooks": hooks_eager,
    "hooks-compile": hooks_compiled,
    "hooks-compile-raised": hooks_compiled_raised,
    "graphcache": ours,
    "ideal": ideal,
}
"""In the order of the table."""


def twin(module: Transformer) -> Transformer:
    """A copy that shares the weights."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def hooked(work: Workload) -> Transformer:
    """A twin with diffusers' PAB enabled."""
    module = twin(work.transformer)
    module.enable_cache(pab_config(work))
    return module


def dynamo(
    module: nn.Module,
    counter: CompileCounter,
    *,
    fullgraph: bool = False,
    limit: int | None = None,
) -> nn.Module:
    """`torch.compile` with Inductor, counted, in a compartment of its own.

    Args:
        module: What to compile.
        counter: Counts its graphs.
        fullgraph: Whether a graph break is an error.
        limit: Recompilations allowed; None leaves Dynamo's default.
    """
    compiled: nn.Module = torch.compile(  # type: ignore[call-overload]
        module,
        backend=counter,
        fullgraph=fullgraph,
        recompile_limit=limit,
        isolate_recompiles=True,
    )
    return compiled


def in_context(module: Any) -> Step:
    """Calls inside ``cache_context``, as the pipeline does."""

    def step(**inputs: Any) -> Any:
        with module.cache_context(CONTEXT):
            return module(**inputs)

    return step


def checked_cache(work: Workload) -> list[Cached]:
    """Attention outputs for the ideal, from the hooks, and a check of its reused step.

    Raises:
        RuntimeError: If the hand-written step differs from the hooks' reused step.
    """
    module = hooked(work)
    first, second = (work.inputs(timestep) for timestep in (700, 680))
    work.clock.timestep = 700
    module(**first)
    cached = cached_outputs(module)
    work.clock.timestep = 680
    expected = module(**second)[0]
    second.pop("return_dict")
    actual = ReuseStep(work.transformer)(**second, cached=cached)[0]
    if not torch.equal(actual, expected):
        raise RuntimeError(
            "the hand-written step differs from the hooks' reused step by "
            f"{(actual - expected).abs().max():.2e}"
        )
    return cached


def _hooks_compiled(work: Workload, label: str, limit: int | None) -> Row:
    counter = CompileCounter()
    module = hooked(work)
    return Row(
        label,
        in_context(dynamo(module, counter, limit=limit)),
        reset=module._reset_stateful_cache,
        counter=counter,
        reference="hooks",
    )


def _graph_breaks() -> int:
    return sum(counters["graph_break"].values())
