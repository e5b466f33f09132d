"""Every diffusion transformer of diffusers, built tiny and called once.

The classes stand in modules by the first letters of their names; `entries` is all of
them. What a module needs to be built and called is in its entry, so a check of one
class is a check of any.
"""

from __future__ import annotations

from importlib import import_module
from itertools import chain

from benchmarks.catalogue.entry import Entry

_PARTS = ("a_to_c", "d_to_g", "h_to_k", "k_to_o", "p_to_s", "t_to_z")


def entries() -> tuple[Entry, ...]:
    """Every entry, by name."""
    parts = [import_module(f"{__name__}.{part}").ENTRIES for part in _PARTS]
    return tuple(sorted(chain(*parts), key=lambda entry: entry.name))
