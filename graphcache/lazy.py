"""Names of what is loaded when it is asked for: backends, formats of engines."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from graphcache.errors import GraphCacheError


def make_named(
    locations: Mapping[str, str], name: str, kind: str, error: type[GraphCacheError]
) -> Any:
    """An instance of the class that a name stands for.

    Args:
        locations: By name, ``"module:Class"``.
        name: What is asked for.
        kind: What it is, for the message.
        error: What to raise.

    Raises:
        GraphCacheError: Of type `error`, if there is none; it lists the known names.
    """
    try:
        location = locations[name]
    except (KeyError, TypeError):
        raise error(f"unknown {kind} {name!r}: know {', '.join(locations)}") from None
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)()
