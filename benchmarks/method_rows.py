"""One method measured: what it costs, what it skips, and how close its clips are."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import graphcache
from benchmarks.calibrations import Calibrations
from benchmarks.method_settings import Method
from benchmarks.rows import CompileCounter, dynamo, twin
from benchmarks.timing import Samples
from graphcache.demo import Generator
from graphcache.explanation import Explanation
from graphcache.inspection import latent_shape
from graphcache.report import Quality, compare
from graphcache.runtime.stats import Statistics, StepRecord


@dataclass
class Row:
    """One way to make the clips.

    Attributes:
        key: For the command line and the results.
        name: What it is.
        setting: What it was given.
        module: The transformer that the pipeline calls.
        steps: Steps of the loop.
        costs: FLOPs of a step by its outcome; of an uncached step under "".
        counter: Counts Dynamo's graphs; None where Dynamo is not asked.
        statistics: Of one generation; None if nothing is cached.
        clips: Of that generation.
        graphs: Graphs compiled by the time the row was warm.
        breaks: Graphs that Dynamo broke meanwhile.
    """

    key: str
    name: str
    setting: str
    module: nn.Module
    steps: int
    costs: Mapping[str, int]
    counter: CompileCounter | None = None
    statistics: Statistics | None = None
    clips: Tensor | None = None
    graphs: int = 0
    breaks: int = 0

    @property
    def compiled(self) -> int:
        """Graphs compiled so far."""
        stats = self.counted
        ours = 0 if stats is None else stats.graphs_compiled
        return ours + (0 if self.counter is None else self.counter.graphs)

    @property
    def counted(self) -> Statistics | None:
        """What the module counts, if it caches; asking notes what it holds."""
        found: Statistics | None = getattr(self.module, "cache_stats", None)
        return found

    def run(self, generator: Generator) -> Tensor:
        """One generation."""
        generator.pipe.transformer = self.module
        generator.settings = replace(generator.settings, steps=self.steps)
        return generator.generate()

    def warm_up(self, generator: Generator) -> None:
        """One generation, which compiles and is counted."""
        before = graph_breaks()
        self.clips = self.run(generator)
        self.statistics = copy.deepcopy(self.counted)
        self.graphs, self.breaks = self.compiled, graph_breaks() - before

    @property
    def outcomes(self) -> Counter[str]:
        """By outcome, the steps of one generation that had it."""
        if self.statistics is None:
            return Counter({"": self.steps})
        return Counter(map(outcome, self.statistics.steps))

    @property
    def flops(self) -> int:
        """FLOPs of one generation.

        Raises:
            RuntimeError: If a step had an outcome whose cost is not known.
        """
        unknown = [name for name in self.outcomes if name not in self.costs]
        if unknown:
            raise RuntimeError(
                f"{self.key}: no variant is {unknown[0]!r} of {list(self.costs)}"
            )
        return sum(count * self.costs[name] for name, count in self.outcomes.items())


def graph_breaks() -> int:
    """Graphs that Dynamo broke so far, in any row."""
    return sum(counters["graph_break"].values())


def outcome(record: StepRecord) -> str:
    """The name of what a step ran, as that of a variant in `graphcache.explain`."""
    return " ".join(
        f"{name}={'compute' if computed else 'reuse'}"
        for name, computed in record.computed.items()
    )


def example_inputs(generator: Generator) -> dict[str, Any]:
    """Arguments of one call, of the shapes that the pipeline gives."""
    batch = 2 * generator.settings.clips
    _, tokens, width = generator.embeddings.shape
    shape = latent_shape(generator.pipe.transformer.config)
    return {
        "hidden_states": torch.zeros(batch, *shape),
        "encoder_hidden_states": torch.zeros(batch, tokens, width),
        "timestep": torch.full((batch,), 500),
        "return_dict": False,
    }


def variant_costs(found: Explanation) -> dict[str, int]:
    """FLOPs of a step by its outcome."""
    return {variant.name: variant.flops for variant in found.variants}


def method_row(
    method: Method,
    generator: Generator,
    plain: nn.Module,
    given: Calibrations,
    backend: str,
) -> Row:
    """A method, to be compiled at its first generation.

    Args:
        method: The method at a setting.
        generator: Its pipeline's scheduler tells the steps.
        plain: The transformer.
        given: What was calibrated.
        backend: Of `graphcache.compile`.
    """
    config = method.config(given)
    scheduler, steps = generator.pipe.scheduler, given.steps
    with torch.no_grad():
        found = graphcache.explain(plain, config, **example_inputs(generator))
    module = graphcache.compile(
        plain, config, backend=backend, scheduler=scheduler, progress=False
    )
    costs = variant_costs(found)
    return Row(method.key, method.name, method.setting, module, steps, costs)


def uncached_rows(
    plain: nn.Module, backend: str, counts: Sequence[int], flops: int
) -> list[Row]:
    """The uncached transformer over several numbers of steps, compiled once.

    Args:
        plain: The transformer.
        backend: If it is ``"inductor"``, the rows run under `torch.compile`.
        counts: Numbers of steps, the full one first.
        flops: Of one step.
    """
    counter, module, name = None, plain, "Uncached"
    if backend == "inductor":
        counter = CompileCounter()
        module = dynamo(twin(plain), counter, fullgraph=True)
        name = "Uncached, `torch.compile`"
    return [
        Row(f"uncached-{n}", name, f"{n} steps", module, n, {"": flops}, counter)
        for n in counts
    ]


def describe(
    row: Row, samples: Samples, baseline: Samples, reference: Tensor, whole: int
) -> dict[str, Any]:
    """One row of the table, as plain values for JSON.

    Args:
        row: Warm, and timed.
        samples: Its generations.
        baseline: Those of the uncached transformer.
        reference: The clips that its own should be.
        whole: FLOPs of an uncached generation.
    """
    assert row.clips is not None
    return {
        "name": row.name,
        "setting": row.setting,
        "flops": row.flops,
        "flops_kept": row.flops / whole,
        **_steps(row),
        **samples.as_milliseconds(),
        "over_uncached": samples.median / baseline.median,
        "graphs": row.graphs,
        "recompiles_while_timed": row.compiled - row.graphs,
        "graph_breaks": row.breaks,
        **_cache(row.statistics),
        **quality(compare(reference, row.clips)),
    }


def _steps(row: Row) -> dict[str, Any]:
    """Steps computed in full and not, by outcome and by policy."""
    outcomes = row.outcomes
    reused = sum(n for name, n in outcomes.items() if "=reuse" in name)
    records = () if row.statistics is None else tuple(row.statistics.steps)
    computed: Counter[str] = Counter()
    for record in records:
        computed.update(name for name, value in record.computed.items() if value)
    return {
        "steps": row.steps,
        "steps_computed": row.steps - reused,
        "steps_reused": reused,
        "outcomes": {
            name: {"steps": count, "flops": row.costs[name]}
            for name, count in outcomes.items()
            if name
        },
        "computed_by_policy": {
            name: computed[name] for record in records[:1] for name in record.computed
        },
    }


def _cache(stats: Statistics | None) -> dict[str, int]:
    return {
        "host_reads": 0 if stats is None else stats.host_reads,
        "device_reads": 0 if stats is None else stats.device_reads,
        "planned_bytes": 0 if stats is None else stats.planned_bytes,
        "peak_bytes": 0 if stats is None else stats.peak_buffer_bytes,
    }


def quality(found: Quality) -> dict[str, float | None]:
    """For JSON, which has no infinity: identical clips have no PSNR."""
    finite = math.isfinite(found.psnr)
    return {"psnr_db": found.psnr if finite else None, "ssim": found.ssim}
