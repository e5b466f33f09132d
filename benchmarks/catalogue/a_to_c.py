"""Entries of the catalogue from AceStep to Cosmos."""

from __future__ import annotations

from benchmarks.catalogue import a_to_b, c
from benchmarks.catalogue.entry import Entry

ENTRIES: tuple[Entry, ...] = (*a_to_b.ENTRIES, *c.ENTRIES)
