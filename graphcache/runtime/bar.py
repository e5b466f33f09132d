"""The progress bar of what takes minutes: compiling and exporting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)


@contextmanager
def progress_bar(
    label: str, total: int, *, shown: bool
) -> Iterator[Callable[[], None]]:
    """A bar on the standard error; yields the function that moves it on by one."""
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), disable=not shown)
    with bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
