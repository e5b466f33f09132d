"""The command line: ``graphcache demo``, ``inspect``, ``export`` and ``run``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from graphcache import demo as demos
from graphcache import generation, inspection
from graphcache.engine.formats import format_names
from graphcache.errors import GraphCacheError
from graphcache.folders import TRANSFORMER, Request, Source
from graphcache.lowering import LOWERINGS
from graphcache.policy import load_config, pyramid_attention_broadcast

app = typer.Typer(
    help="A compiler for the denoising loop of diffusion transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_DEFAULTS = demos.Settings()


@app.command()
def demo(
    model: Annotated[
        Path, typer.Option(help="Directory of the model.", show_default=False)
    ] = _DEFAULTS.model,
    output: Annotated[
        Path, typer.Option(help="Directory for figures and results.json.")
    ] = _DEFAULTS.output,
    steps: Annotated[
        int, typer.Option(min=1, max=1000, help="Denoising steps.")
    ] = _DEFAULTS.steps,
    clips: Annotated[
        int, typer.Option(min=1, help="Clips in one batch.")
    ] = _DEFAULTS.clips,
    backend: Annotated[
        str, typer.Option(help="Backend of graphcache.compile.")
    ] = _DEFAULTS.backend,
    skip_range: Annotated[
        int, typer.Option(min=1, help="Compute attention at every n-th step.")
    ] = _DEFAULTS.skip_range,
    guidance: Annotated[
        float, typer.Option(min=1.0, help="Scale of classifier-free guidance.")
    ] = _DEFAULTS.guidance,
    with_compile: Annotated[
        bool, typer.Option("--with-compile", help="Run uncached torch.compile too.")
    ] = _DEFAULTS.with_compile,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch on the CPU.")
    ] = _DEFAULTS.threads,
    seed: Annotated[
        int, typer.Option(help="Seed of the initial noise.")
    ] = _DEFAULTS.seed,
) -> None:
    """Generate the same clips uncached and with Pyramid Attention Broadcast."""
    settings = demos.Settings(
        model=model,
        output=output,
        steps=steps,
        clips=clips,
        backend=backend,
        skip_range=skip_range,
        guidance=guidance,
        with_compile=with_compile,
        threads=threads,
        seed=seed,
    )
    with _errors():
        demos.run_demo(settings, Console())


PromptList = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="One per picture or clip; may be given repeatedly."),
]
Height = Annotated[int | None, typer.Option(min=1, help="In pixels.")]
Width = Annotated[int | None, typer.Option(min=1, help="In pixels.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of a clip.")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Scale of guidance.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial noise.")]
Component = Annotated[str, typer.Option(help="Which transformer of the pipeline.")]
Method = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(inspection.METHODS)}.")
]
Config = Annotated[
    Path | None, typer.Option(help="What to cache: a JSON or YAML file.")
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rows of one call of a transformer alone, two a clip with guidance; 2.",
    ),
]
Device = Annotated[str, typer.Option(help="The device to compile for.")]
FOLDER = "Folder of a pipeline, or of a CogVideoX transformer."


@app.command()
def inspect(
    model_dir: Annotated[Path, typer.Argument(help=FOLDER)],
    spatial: Annotated[
        int | None, typer.Option(min=1, help="Interval of self- and joint attention.")
    ] = None,
    temporal: Annotated[
        int | None, typer.Option(min=1, help="Interval of attention over frames.")
    ] = None,
    cross: Annotated[
        int | None, typer.Option(min=1, help="Interval of cross-attention.")
    ] = None,
    window: Annotated[
        tuple[float, float], typer.Option(help="Reuse only between these timesteps.")
    ] = (100, 800),
    method: Method = None,
    config: Config = None,
    prompt: PromptList = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 1,
    component: Component = TRANSFORMER,
    batch: Batch = None,
    dtype: Annotated[
        str | None, typer.Option(help="The precision, such as bfloat16.")
    ] = None,
) -> None:
    """Print what would be cached, by default at every 2nd step by Pyramid Attention."""
    request = Request(tuple(prompt or ()), height, width, frames, steps, guidance, seed)
    with _errors():
        chosen = _chosen(method, config, (spatial, temporal, cross), window)
        kind = None if dtype is None else generation.parse_dtype(dtype)
        source = Source(model_dir, request, component, batch, dtype=kind)
        module, inputs = source.load()
        typer.echo(inspection.report(module, inputs, chosen))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help=FOLDER)],
    output: Annotated[Path, typer.Argument(help="The engine to make, a directory.")],
    method: Method = None,
    config: Config = None,
    prompt: PromptList = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 1,
    component: Component = TRANSFORMER,
    batch: Batch = None,
    backend: Annotated[
        str, typer.Option(help=f"One of {', '.join(format_names())}.")
    ] = "aot_inductor",
    lowering: Annotated[
        str, typer.Option(help=f"One of {', '.join(LOWERINGS)}.")
    ] = "auto",
    option: Annotated[
        list[str] | None,
        typer.Option(help="Of the backend, NAME=VALUE; may be given several times."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="The precision.")] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an engine that is there.")
    ] = False,
) -> None:
    """Compile a transformer and its cache ahead of time, into an engine."""
    request = Request(tuple(prompt or ()), height, width, frames, steps, guidance, seed)
    with _errors():
        kind = generation.parse_dtype(dtype)
        wanted = generation.Export(
            source=Source(model, request, component, batch, device, kind),
            output=output,
            config=_chosen(method, config),
            backend=backend,
            lowering=lowering,
            options=generation.parse_options(option or ()),
            overwrite=overwrite,
        )
        generation.export_model(wanted, Console())


@app.command()
def run(
    engine: Annotated[Path, typer.Argument(help="What export wrote.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="One per clip; a digit for the model of the demo."),
    ] = None,
    model: Annotated[
        Path,
        typer.Option(help="Directory of the rest of the pipeline.", show_default=False),
    ] = _DEFAULTS.model,
    output: Annotated[
        Path, typer.Option(help="Directory for the picture or the clip.")
    ] = Path("out"),
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = _DEFAULTS.seed,
    component: Component = TRANSFORMER,
) -> None:
    """Generate with an engine in the place of a pipeline's transformer."""
    request = Request(
        tuple(prompts or ()), height, width, frames, steps, guidance, seed
    )
    wanted = generation.Generation(engine, model, output, request, component)
    with _errors():
        generation.run_engine(wanted, Console())


def _chosen(
    method: str | None,
    config: Path | None,
    intervals: tuple[int | None, int | None, int | None] = (None, None, None),
    window: tuple[float, float] = (100, 800),
) -> object:
    """What to cache: a file, a method, or Pyramid Attention Broadcast.

    Raises:
        GraphCacheError: If more than one is given, or it is none.
    """
    given = {
        "--config": config is not None,
        "--method": method is not None,
        "--spatial, --temporal or --cross": any(intervals),
    }
    if sum(given.values()) > 1:
        several = " and ".join(name for name, is_given in given.items() if is_given)
        raise GraphCacheError(f"{several} both say what to cache: give one of them")
    if config is not None:
        return load_config(config)
    if method is not None:
        return inspection.method(method)
    chosen = intervals if any(intervals) else (2, None, None)
    return pyramid_attention_broadcast(*chosen, window=window)


@contextmanager
def _errors() -> Iterator[None]:
    """Print what graphcache refuses without a traceback, and exit with 1."""
    try:
        yield
    except GraphCacheError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
