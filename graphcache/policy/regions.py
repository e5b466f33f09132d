"""Region selectors: which regions of the graph a policy caches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from graphcache.analysis.view import Analysis, region_of
from graphcache.errors import PolicyError
from graphcache.policy.checks import check_count
from graphcache.policy.probes import require_chain
from graphcache.program import Region

TEMPORAL = r"temporal|motion"
"""Module paths of attention over time, by the names that models give it."""
_FLOWS = ("self", "joint", "cross")


class Selector(Protocol):
    """Which regions of a graph a policy takes."""

    @property
    def noun(self) -> str:
        """What it looks for, for messages: ``attention``."""
        ...

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """The regions that could be taken, in graph order.

        Raises:
            PolicyError: If the graph cannot have such regions.
        """
        ...

    def reject(self, region: Region) -> str | None:
        """Why a candidate is not taken, or None if it is."""
        ...


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise for an expression that cannot be compiled."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise PolicyError(
                f"{pattern!r} is not a regular expression: {error}"
            ) from error


def reject_path(
    region: Region, include: tuple[str, ...], exclude: tuple[str, ...]
) -> str | None:
    """Why a region's path is not wanted: one of `include`, none of `exclude`."""
    if not any(re.search(pattern, region.path) for pattern in include):
        return f"path matches none of {', '.join(map(repr, include))}"
    for pattern in exclude:
        if re.search(pattern, region.path):
            return f"path matches the excluded {pattern!r}"
    return None


def declares_cross(region: Region) -> bool:
    """Cross-attention as diffusers tells it: by the module's own attribute.

    One that is given its own tokens as the context is self-attention all the same.
    """
    return region.declares_cross and region.flow != "self"


@dataclass(frozen=True)
class Attention:
    """Select attention regions.

    Args:
        flows: Which dataflows: ``"self"``, ``"joint"`` (several streams attend to
            each other), ``"cross"`` (keys from a sequence the queries do not see).
        include: Regular expressions; one must be found in the module path.
        exclude: Regular expressions; none may be found in it.
        is_cross: How to tell cross-attention instead of by dataflow.
        within: More regular expressions; one of these must be found as well.

    Raises:
        PolicyError: For an unknown flow or a malformed expression.
    """

    flows: tuple[str, ...] = _FLOWS
    include: tuple[str, ...] = ("",)
    exclude: tuple[str, ...] = ()
    is_cross: Callable[[Region], bool] | None = None
    within: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        unknown = set(self.flows) - set(_FLOWS)
        if unknown:
            raise PolicyError(
                f"unknown attention flow {sorted(unknown)}: know self, joint, cross"
            )
        check_patterns((*self.include, *self.exclude, *self.within))

    @property
    def noun(self) -> str:
        """Attention."""
        return "attention"

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """Every attention region."""
        return _of_kind(analysis, "attention")

    def reject(self, region: Region) -> str | None:
        """Why the region is not selected, or None if it is."""
        if region.kind != "attention":
            return f"is {region.kind}, not attention"
        flow = self._flow(region)
        if flow not in self.flows:
            return f"is {flow}-attention, wanted {' or '.join(self.flows)}"
        outside = reject_path(region, self.within, ())
        return outside or reject_path(region, self.include, self.exclude)

    def _flow(self, region: Region) -> str:
        if self.is_cross is None:
            return region.flow
        if self.is_cross(region):
            return "cross"
        return "self" if region.flow == "cross" else region.flow


@dataclass(frozen=True)
class _OfKind:
    """Selects regions of one kind by their paths."""

    include: tuple[str, ...] = ("",)
    exclude: tuple[str, ...] = ()
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        check_patterns((*self.include, *self.exclude))

    @property
    def noun(self) -> str:
        """The kind."""
        return self.kind

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """Every region of the kind."""
        return _of_kind(analysis, self.kind)

    def reject(self, region: Region) -> str | None:
        """Why the region is not selected, or None if it is."""
        if region.kind != self.kind:
            return f"is {region.kind}, not {self.kind}"
        return reject_path(region, self.include, self.exclude)


@dataclass(frozen=True)
class FeedForward(_OfKind):
    """Select feed-forward regions.

    Args:
        include: Regular expressions; one must be found in the module path.
        exclude: Regular expressions; none may be found in it.
    """

    kind: ClassVar[str] = "feed-forward"


@dataclass(frozen=True)
class EachBlock(_OfKind):
    """Select blocks of the chain, each as a region of its own.

    Args:
        include: Regular expressions; one must be found in the module path.
        exclude: Regular expressions; none may be found in it.
    """

    kind: ClassVar[str] = "block"


@dataclass(frozen=True)
class Blocks:
    """Select one run of blocks, across all block lists, in order of execution.

    What is added to a stream between two blocks of the run belongs to the run.

    Args:
        head: How many blocks come before it; 0 takes it from the first.
        tail: How many blocks come after it.

    Raises:
        PolicyError: If a number is negative.
    """

    head: int = 0
    tail: int = 0

    def __post_init__(self) -> None:
        check_count("the number of head blocks", self.head, 0)
        check_count("the number of tail blocks", self.tail, 0)

    @property
    def noun(self) -> str:
        """Run of blocks."""
        return "run of blocks"

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """The run.

        Raises:
            PolicyError: If the graph has too few blocks.
        """
        what = f"a run after {self.head} head and before {self.tail} tail blocks"
        require_chain(analysis, self.head + self.tail + 1, what)
        run = analysis.run(self.head, self.tail)
        if not run.results:
            raise PolicyError(
                f"what enters {run.first} cannot be told: none of its results has the "
                "type of one of its operands. Leave a head block before the run."
            )
        name = run.first if run.first == run.last else f"{run.first}..{run.last}"
        region = region_of(
            f"{name}:run",
            "run",
            run.nodes,
            results=run.results,
            streams=run.starts,
        )
        return (region,)

    def reject(self, region: Region) -> str | None:
        """None: there is one run."""
        return None


@dataclass(frozen=True)
class Modules:
    """Select module calls by their paths.

    Args:
        patterns: Regular expressions; one must match the whole path.
    """

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        check_patterns(self.patterns)

    @property
    def noun(self) -> str:
        """Module."""
        return "module"

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """Every region, and every other module call that matches and gives tensors."""
        regions = {region.nodes: region for region in analysis.regions}
        calls = {call.nodes: call for call in analysis.modules()}
        others = {key: r for key, r in calls.items() if self.reject(r) is None}
        return tuple({**others, **regions}.values())

    def reject(self, region: Region) -> str | None:
        """Why the region is not selected, or None if it is."""
        if any(re.fullmatch(pattern, region.path) for pattern in self.patterns):
            return None
        return f"path is none of {', '.join(map(repr, self.patterns))}"


@dataclass(frozen=True)
class Model:
    """Select the whole model: its outputs."""

    @property
    def noun(self) -> str:
        """Model."""
        return "model"

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """The model."""
        return (analysis.model(),)

    def reject(self, region: Region) -> str | None:
        """None: there is one model."""
        return None


@dataclass(frozen=True)
class LastOutput:
    """Select the one place that everything else leads to: the last projection.

    It is the module called ``proj_out``, as in diffusers, or the whole model where
    there is none.
    """

    @property
    def noun(self) -> str:
        """Last output."""
        return "last output"

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """The last projection, or the model."""
        found = tuple(r for r in analysis.modules() if r.path == "proj_out")
        return found or (analysis.model(),)

    def reject(self, region: Region) -> str | None:
        """None: there is one last output."""
        return None


@dataclass(frozen=True)
class AnyOf:
    """Select what any of several selectors does, under one decision.

    Args:
        selectors: Of attention, feed-forward or blocks: regions of different kinds.

    Raises:
        PolicyError: If there are none.
    """

    selectors: tuple[Attention | FeedForward | EachBlock, ...]

    def __post_init__(self) -> None:
        if not self.selectors:
            raise PolicyError("give at least one selector")

    @property
    def noun(self) -> str:
        """The nouns of all."""
        return " or ".join(dict.fromkeys(part.noun for part in self.selectors))

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """The candidates of all."""
        found = (part.candidates(analysis) for part in self.selectors)
        given = {region.name: region for part in found for region in part}
        return tuple(region for region in analysis.regions if region.name in given)

    def reject(self, region: Region) -> str | None:
        """Why none selects the region, or None if one does."""
        reasons = [part.reject(region) for part in self.selectors]
        refused = [reason for reason in reasons if reason is not None]
        return None if len(refused) < len(reasons) else " and ".join(refused)


def _of_kind(analysis: Analysis, kind: str) -> tuple[Region, ...]:
    return tuple(region for region in analysis.regions if region.kind == kind)
