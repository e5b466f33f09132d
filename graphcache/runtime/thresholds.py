"""Thresholds: the numbers that dynamic decisions compare with, by policy name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from graphcache.errors import PolicyError
from graphcache.policy.checks import check_threshold
from graphcache.policy.policy import Policy
from graphcache.policy.threshold import Threshold


class Thresholds(Mapping[str, float]):
    """A mapping whose values can be set at any time; nothing is compiled again.

    Args:
        values: By policy name; no other can be set.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)

    def adopt(self, policies: Sequence[Policy]) -> None:
        """Hold the thresholds of these policies, and no others."""
        self._values = thresholds_of(policies)

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __setitem__(self, name: str, value: float) -> None:
        """Set a threshold.

        Raises:
            PolicyError: If the policy has none, or the value is negative or no number.
        """
        if name not in self._values:
            known = ", ".join(self._values) or "none"
            raise PolicyError(
                f"{name!r} has no threshold to set; policies that have one: {known}"
            )
        check_threshold(value)
        self._values[name] = float(value)

    def update(self, values: Mapping[str, float]) -> None:
        """Set several thresholds."""
        for name, value in values.items():
            self[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def thresholds_of(policies: Sequence[Policy]) -> dict[str, float]:
    """The thresholds of those policies whose decisions are dynamic, by name."""
    return {
        policy.name: float(policy.decision.threshold)
        for policy in policies
        if isinstance(policy.decision, Threshold)
    }
