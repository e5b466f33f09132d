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
from graphcache.lowering import LOWERINGS
from graphcache.policy import pyramid_attention_broadcast

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


@app.command()
def inspect(
    model_dir: Annotated[Path, typer.Argument(help="Directory of a transformer.")],
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
    method: Annotated[
        str | None,
        typer.Option(help=f"Another method: {', '.join(inspection.METHODS)}."),
    ] = None,
) -> None:
    """Print what Pyramid Attention Broadcast would cache (--spatial 2 by default)."""
    if spatial is temporal is cross is None:
        spatial = 2
    with _errors():
        config: object = pyramid_attention_broadcast(
            spatial, temporal, cross, window=window
        )
        if method is not None:
            config = inspection.method(method)
        typer.echo(inspection.inspect(model_dir, config))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Directory of a transformer.")],
    output: Annotated[Path, typer.Argument(help="The engine to make, a directory.")],
    method: Annotated[
        str, typer.Option(help=f"What to cache: {', '.join(inspection.METHODS)}.")
    ] = "pab",
    batch: Annotated[
        int,
        typer.Option(min=1, help="Clips in one call; guidance doubles their number."),
    ] = 2,
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
    device: Annotated[str, typer.Option(help="The device to run it.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="The precision.")] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an engine that is there.")
    ] = False,
) -> None:
    """Compile a transformer and its cache ahead of time, into an engine."""
    with _errors():
        wanted = generation.Export(
            model=model,
            output=output,
            config=inspection.method(method),
            batch=batch,
            backend=backend,
            lowering=lowering,
            options=generation.parse_options(option or ()),
            device=device,
            dtype=dtype,
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
    output: Annotated[Path, typer.Option(help="Directory for the picture.")] = Path(
        "out"
    ),
    steps: Annotated[
        int, typer.Option(min=1, max=1000, help="Denoising steps.")
    ] = _DEFAULTS.steps,
    guidance: Annotated[
        float, typer.Option(min=1.0, help="Scale of classifier-free guidance.")
    ] = _DEFAULTS.guidance,
    seed: Annotated[
        int, typer.Option(help="Seed of the initial noise.")
    ] = _DEFAULTS.seed,
) -> None:
    """Generate with an engine in the place of a pipeline's transformer."""
    wanted = generation.Generation(
        engine=engine,
        model=model,
        output=output,
        prompts=tuple(prompts or ("3",)),
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    with _errors():
        generation.run_engine(wanted, Console())


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
