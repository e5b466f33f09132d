"""Region selectors: which regions of the graph a policy caches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from graphcache.errors import PolicyError
from graphcache.program import Region

TEMPORAL = r"temporal|motion"
"""Module paths of attention over time, by the names that models give it."""


@dataclass(frozen=True)
class Attention:
    """Select attention regions.

    Args:
        flows: Which dataflows: ``"self"``, ``"joint"`` (several streams attend to
            each other), ``"cross"`` (keys from a sequence the queries do not see).
        include: Regular expressions; one must be found in the module path.
        exclude: Regular expressions; none may be found in it.
        is_cross: How to tell cross-attention instead of by dataflow.

    Raises:
        PolicyError: For an unknown flow or a malformed expression.
    """

    flows: tuple[str, ...] = ("self", "joint", "cross")
    include: tuple[str, ...] = ("",)
    exclude: tuple[str, ...] = ()
    is_cross: Callable[[Region], bool] | None = None

    def __post_init__(self) -> None:
        unknown = set(self.flows) - {"self", "joint", "cross"}
        if unknown:
            raise PolicyError(
                f"unknown attention flow {sorted(unknown)}: know self, joint, cross"
            )
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise PolicyError(
                    f"{pattern!r} is not a regular expression: {error}"
                ) from error

    def reject(self, region: Region) -> str | None:
        """Why the region is not selected, or None if it is."""
        if region.kind != "attention":
            return f"is {region.kind}, not attention"
        flow = self._flow(region)
        if flow not in self.flows:
            return f"is {flow}-attention, wanted {' or '.join(self.flows)}"
        if not any(re.search(pattern, region.path) for pattern in self.include):
            return f"path matches none of {', '.join(map(repr, self.include))}"
        for pattern in self.exclude:
            if re.search(pattern, region.path):
                return f"path matches the excluded {pattern!r}"
        return None

    def _flow(self, region: Region) -> str:
        if self.is_cross is None:
            return region.flow
        if self.is_cross(region):
            return "cross"
        return "self" if region.flow == "cross" else region.flow
