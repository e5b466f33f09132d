"""Caching methods in plain Python, written from their papers.

They are what the compiled graphs are compared with where diffusers has no hooks, or has
wrong ones. Each is a context manager that replaces forwards of named submodules, gives
a `Log` of what ran and restores the forwards:

    run = by_reference(ZOO["flux"], lambda module: fora(module, every=3), steps=12)
    run.outputs, run.computed, run.changes, run.steps()

One context is one generation of one stream; guidance in turn is two of them.
"""

from __future__ import annotations

from tests.references.db_cache import db_cache
from tests.references.fora import fora
from tests.references.patching import Log, ReferenceRun, by_reference, logged
from tests.references.smooth_cache import layer_errors, smooth_cache, smooth_schedule
from tests.references.step_mask import step_mask, trunk_mask
from tests.references.t_gate import t_gate
from tests.references.tea_cache import tea_cache

__all__ = [
    "Log",
    "ReferenceRun",
    "by_reference",
    "db_cache",
    "fora",
    "layer_errors",
    "logged",
    "smooth_cache",
    "smooth_schedule",
    "step_mask",
    "t_gate",
    "tea_cache",
    "trunk_mask",
]
