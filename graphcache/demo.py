"""The demo: the same clips uncached and with Pyramid Attention Broadcast.

It drives diffusers' own `CogVideoXPipeline`, unmodified, with a small trained
transformer and prompt embeddings in place of a text encoder.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import graphcache
from graphcache import figures, report
from graphcache.errors import GraphCacheError
from graphcache.inspection import latent_shape, load_transformer
from graphcache.report import Run
from graphcache.runtime.stats import Statistics

DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "assets" / "moving-digits"
"""Part of a checkout; an installed package is without it."""
CLIPS, SCHEDULE, RESULTS = "clips.png", "schedule.png", "results.json"

_UNCONDITIONAL = 10
_TIMED = 3
_PACKAGES = ("graphcache", "torch", "diffusers", "transformers", "numpy")


@dataclass(frozen=True)
class Settings:
    """What to generate.

    Attributes:
        model: Directory with ``transformer/``, ``scheduler/`` and the embeddings.
        output: Directory for the figures and ``results.json``, made if missing.
        steps: Denoising steps.
        clips: Clips in one batch; clip i shows the digit i modulo 10.
        backend: Backend of `graphcache.compile`.
        skip_range: Attention is computed at every n-th step inside the window.
        guidance: Scale of classifier-free guidance.
        window: Attention is reused only at timesteps strictly between the two.
        with_compile: Whether to run uncached ``torch.compile`` too.
        threads: Threads of torch on the CPU. The model is so small that a second one
            costs more than it gains as soon as the machine is busy.
        seed: Seed of the initial noise.
    """

    model: Path = DEFAULT_MODEL
    output: Path = Path("out")
    steps: int = 50
    clips: int = 4
    backend: str = "inductor"
    skip_range: int = 2
    guidance: float = 2.5
    window: tuple[int, int] = (100, 800)
    with_compile: bool = False
    threads: int = 1
    seed: int = 1

    @property
    def labels(self) -> list[int]:
        """The digit of each clip."""
        return [clip % _UNCONDITIONAL for clip in range(self.clips)]


def run_demo(settings: Settings, console: Console) -> list[Run]:
    """Generate, print the table, and write the figures and ``results.json``.

    Args:
        settings: What to generate.
        console: Where the table is printed.

    Returns:
        The runs in the order of the columns, the uncached one first.

    Raises:
        GraphCacheError: If the ``bench`` extra or the model is missing, or the module
            cannot be compiled.
    """
    report.require_extra()
    progress = Console(stderr=True)
    generator = Generator.load(settings)
    with _threads(settings.threads):
        runs = measure(generator, _variants(generator, settings), progress.print)
    report.print_table(console, runs, "moving-digits", _caption(settings))
    write_results(settings, runs)
    progress.print(f"{settings.output}: {CLIPS}, {SCHEDULE}, {RESULTS}")
    return runs


@dataclass
class Generator:
    """A pipeline and what it is called with.

    Attributes:
        pipe: diffusers' `CogVideoXPipeline`.
        embeddings: f32[11, tokens, width]: a prompt per digit, and the empty prompt.
        settings: What to generate.
    """

    pipe: Any
    embeddings: Tensor
    settings: Settings

    @classmethod
    def load(cls, settings: Settings) -> Generator:
        """Load the model.

        Raises:
            GraphCacheError: If there is none in ``settings.model``.
        """
        root = settings.model
        transformer = load_transformer(root / "transformer")
        file = root / "embeddings.safetensors"
        for needed in (root / "scheduler" / "scheduler_config.json", file):
            if not needed.is_file():
                raise GraphCacheError(f"{needed} is missing: it is part of the model")
        from safetensors.torch import load_file

        diffusers = importlib.import_module("diffusers")
        schedulers = diffusers.CogVideoXDDIMScheduler
        pipe = diffusers.CogVideoXPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=transformer,
            scheduler=schedulers.from_pretrained(root / "scheduler"),
        )
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, load_file(file)["embeddings"], settings)

    def generate(self) -> Tensor:
        """The clips: f32[clips, frames, 1, height, width], about [-1, 1]."""
        settings = self.settings
        negative = self.embeddings[_UNCONDITIONAL:].expand(settings.clips, -1, -1)
        clips: Tensor = self.pipe(
            prompt_embeds=self.embeddings[settings.labels],
            negative_prompt_embeds=negative,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            latents=self._noise(),
            output_type="latent",
        ).frames
        return clips

    def _noise(self) -> Tensor:
        shape = latent_shape(self.pipe.transformer.config)
        seeded = torch.Generator().manual_seed(self.settings.seed)
        return torch.randn(self.settings.clips, *shape, generator=seeded)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Variants = list[tuple[str, nn.Module]]
"""Headings and transformers, the uncached one first."""


def _variants(generator: Generator, settings: Settings) -> Variants:
    """The same weights, compiled in the ways to compare."""
    diffusers = importlib.import_module("diffusers")
    pipe, plain = generator.pipe, generator.pipe.transformer
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=settings.skip_range,
        spatial_attention_timestep_skip_range=settings.window,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    cached = graphcache.compile(plain, config, backend=settings.backend)
    variants: Variants = [("uncached (eager)", plain), ("graphcache PAB", cached)]
    if settings.with_compile:
        variants.insert(1, ("uncached torch.compile", _torch_compiled(plain)))
    return variants


def _torch_compiled(module: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(module)
    return compiled  # type: ignore[no-any-return]


def measure(
    generator: Generator, variants: Variants, log: Callable[[str], None]
) -> list[Run]:
    """One warm-up generation of each variant, then timed ones in turn.

    Args:
        generator: Makes the clips.
        variants: What to measure, the reference first.
        log: Told what is going on.
    """
    measured = []
    for name, module in variants:
        log(f"{name}: first generation")
        measured.append(_Measurement(generator, name, module))
    for count in range(_TIMED):
        log(f"timed generation {count + 1} of {_TIMED}, of each in turn")
        # In turn, so that a busy machine slows all of them alike.
        for measurement in measured:
            measurement.repeat()
    reference = measured[0].run()
    return [reference, *(item.run(reference) for item in measured[1:])]


class _Measurement:
    """The generations of one variant so far; the first is made at once."""

    def __init__(self, generator: Generator, name: str, module: nn.Module) -> None:
        self.generator = generator
        self.name = name
        self.module = module
        self.seconds: list[float] = []
        self.compiled: list[int] = []
        self.breaks: list[int] = []
        self.repeat()

    @property
    def stats(self) -> Statistics | None:
        found: Statistics | None = getattr(self.module, "cache_stats", None)
        return found

    def repeat(self) -> None:
        """Generate once more, and keep what was measured."""
        self.generator.pipe.transformer = self.module
        if self.stats is not None:
            self.stats.clear()
        compiled, breaks = _compiler_counts(self.stats)
        started = time.perf_counter()
        self.clips = self.generator.generate()
        self.seconds.append(time.perf_counter() - started)
        after = _compiler_counts(self.stats)
        self.compiled.append(after[0] - compiled)
        self.breaks.append(after[1] - breaks)

    def run(self, reference: Run | None = None) -> Run:
        """What was measured."""
        quality = None
        if reference is not None:
            quality = report.compare(reference.clips, self.clips)
        return Run(
            name=self.name,
            clips=self.clips,
            warmup=self.seconds[0],
            seconds=tuple(self.seconds[1:]),
            graphs_compiled=sum(self.compiled),
            graph_breaks=sum(self.breaks),
            recompiles=sum(self.compiled[1:]),
            quality=quality,
            cache=copy.deepcopy(self.stats),
        )


def _compiler_counts(stats: Statistics | None) -> tuple[int, int]:
    """Graphs compiled and graphs broken so far, by Dynamo and by graphcache."""
    from torch._dynamo.utils import counters

    ours = 0 if stats is None else stats.graphs_compiled
    graphs = ours + counters["stats"]["unique_graphs"]
    return graphs, sum(counters["graph_break"].values())


def _caption(settings: Settings) -> str:
    low, high = settings.window
    lines = [
        f"{settings.clips} clips, {settings.steps} steps, guidance "
        f"{settings.guidance:g}, CPU threads: {settings.threads}.",
        f"Attention is computed every {settings.skip_range} steps for {low} < timestep "
        f"< {high}, and at every step outside.",
        f"Wall time: median of {_TIMED} generations after a first one, "
        "which compiles (or finds Inductor's cache on disk).",
        "PSNR and SSIM: against uncached (eager), mean over frames.",
    ]
    if not settings.with_compile:
        lines.append(
            "The speed-up is that of compiling and caching together; --with-compile "
            "tells the two apart."
        )
    return " ".join(lines)


def write_results(settings: Settings, runs: Sequence[Run]) -> None:
    """Write ``clips.png``, ``schedule.png`` and ``results.json``.

    Args:
        settings: What was generated, and where to write.
        runs: The uncached run first, the cached run last.
    """
    reference, cached = runs[0], runs[-1]
    settings.output.mkdir(parents=True, exist_ok=True)
    titles = _titles(settings.labels, reference.clips, cached.clips)
    figures.save_clips(reference, cached, titles, settings.output / CLIPS)
    if cached.cache is None:
        raise ValueError("the last run has no cache statistics")
    schedule = report.schedule_matrix(cached.cache.steps, cached.cache.regions)
    figures.save_schedule(schedule, settings.output / SCHEDULE)
    data = {
        "settings": _plain(settings),
        "runs": {run.name: report.summarize(run, runs) for run in runs},
        "table": report.table_rows(runs),
        "machine": machine_facts(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    text = json.dumps(data, indent=2, allow_nan=False)
    (settings.output / RESULTS).write_text(text + "\n", encoding="utf-8")


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings without paths, which mean nothing elsewhere."""
    values = asdict(settings)
    return {key: value for key, value in values.items() if not isinstance(value, Path)}


def _titles(labels: Sequence[int], reference: Tensor, clips: Tensor) -> list[str]:
    qualities = map(report.compare, reference[:, None], clips[:, None])
    return [
        f"digit {label} (PSNR {quality.psnr:.1f} dB)"
        for label, quality in zip(labels, qualities, strict=True)
    ]


def machine_facts() -> dict[str, Any]:
    """What the timings depend on."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next((name.strip() for name in names), platform.machine())
