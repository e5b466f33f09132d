"""Transformers from Kandinsky 6 to Ovis-Image."""

from __future__ import annotations

from benchmarks.catalogue import k_to_l, m_to_o
from benchmarks.catalogue.entry import Entry

ENTRIES: tuple[Entry, ...] = (*k_to_l.ENTRIES, *m_to_o.ENTRIES)
