"""Decisions: compute or reuse at this step?

A static decision is a function of the step alone, known on the host before the step
runs. What it may depend on is limited so that every combination of a set of decisions
can be enumerated, and every graph compiled, before the first step
(`graphcache.policy.reachable`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from graphcache.errors import PolicyError
from graphcache.policy.checks import check_count, check_window
from graphcache.policy.step import Signature as Signature
from graphcache.policy.step import Step as Step


class Decision(Protocol):
    """A static decision: known on the host before the step runs.

    From the step `horizon` on it depends on the step only through ``step % period``,
    and on the timestep only through the side of each of `edges` on which it lies; the
    `closing` last steps of the schedule may differ. Steps are counted by `Step.place`
    if `scheduled`, by `Step.index` otherwise.
    """

    @property
    def horizon(self) -> int:
        """The step from which the decision repeats itself."""
        ...

    @property
    def period(self) -> int:
        """The interval at which the decision repeats itself, at least 1."""
        ...

    @property
    def edges(self) -> tuple[float, ...]:
        """Timesteps at which the decision can change; empty if it ignores them."""
        ...

    @property
    def closing(self) -> int:
        """How many of the schedule's last steps it treats apart; 0 if not scheduled."""
        ...

    @property
    def scheduled(self) -> bool:
        """Whether it is a function of the place in the schedule."""
        ...

    def computes(self, step: Step) -> bool:
        """Whether the region is computed at this step; True at index 0."""
        ...

    def check(self, count: int | None) -> None:
        """Refuse a loop that the decision was not made for.

        Args:
            count: Steps of the loop; None if not known.

        Raises:
            PolicyError: If the decision is for another number of steps.
        """
        ...


class Static:
    """What most static decisions say of themselves: a base for others."""

    @property
    def horizon(self) -> int:
        """Periodic from the start."""
        return 0

    @property
    def period(self) -> int:
        """The same at every step."""
        return 1

    @property
    def edges(self) -> tuple[float, ...]:
        """None: the timestep does not matter."""
        return ()

    @property
    def closing(self) -> int:
        """None: the number of steps does not matter."""
        return 0

    @property
    def scheduled(self) -> bool:
        """A function of the calls since the reset."""
        return False

    def check(self, count: int | None) -> None:
        """Any number of steps will do."""


@dataclass(frozen=True)
class Always(Static):
    """Compute at every step: the policy that never reuses."""

    def computes(self, step: Step) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class Never(Static):
    """Compute at the first step alone; as `Threshold.forced`: ask at every other."""

    def computes(self, step: Step) -> bool:
        """Whether it is the first step."""
        return step.index == 0


@dataclass(frozen=True)
class Warmed(Static):
    """Compute the first steps, then every n-th, then the last ones.

    Computes step ``s`` if ``s < before``, if ``(s - before - 1) % every == 0``, or if
    ``s >= after``: the decision of TaylorSeer (Liu et al., arXiv 2503.06923) as
    diffusers implements it. With the defaults of its config (5, 3) the computed steps
    are 0, 1, 2, 4, 9, 14, 19 and so on.

    Args:
        every: The interval.
        before: How many first steps are computed.
        after: The step from which all are computed; None for none.

    Raises:
        PolicyError: If `every` is not positive, `before` is negative or `after` is
            smaller than `before`.
    """

    every: int
    before: int = 1
    after: int | None = None

    def __post_init__(self) -> None:
        check_count("an interval", self.every, 1)
        check_count("the number of first steps", self.before, 0)
        if self.after is not None:
            check_count("the step from which all are computed", self.after, self.before)

    @property
    def horizon(self) -> int:
        """After the warm-up, or once everything is computed."""
        return self.before if self.after is None else self.after

    @property
    def period(self) -> int:
        """The interval."""
        return self.every

    def computes(self, step: Step) -> bool:
        """Whether the step is a first, an n-th or a last one."""
        index = step.index
        late = self.after is not None and index >= self.after
        regular = (index - self.before - 1) % self.every == 0
        return index == 0 or index < self.before or regular or late


@dataclass(frozen=True)
class Mask(Static):
    """Compute the steps that a 0/1 mask names; every step after its end.

    The first call of a stream computes whatever the mask says.

    Args:
        computed: One truth value per step of the schedule.
        steps: The number of steps the mask is for; None accepts any.
        wraps: Whether the mask begins again after its end.
        own: Whether `steps` may be those that one of several models sees of a loop that
            they share, such as Wan 2.2's two; then its calls are counted.

    Raises:
        PolicyError: If the mask is empty, holds anything but 0 and 1, or does not
            have `steps` entries.
    """

    computed: tuple[int, ...]
    steps: int | None = None
    wraps: bool = False
    own: bool = False

    def __post_init__(self) -> None:
        if not self.computed or any(value not in (0, 1) for value in self.computed):
            raise PolicyError(
                f"a step mask is one 0 or 1 per step, not {self.computed!r}"
            )
        object.__setattr__(self, "computed", tuple(map(bool, self.computed)))
        if self.steps is not None and self.steps != len(self.computed):
            raise PolicyError(
                f"the step mask has {len(self.computed)} entries for {self.steps} steps"
            )

    @property
    def horizon(self) -> int:
        """The end of the mask, unless it begins again."""
        return 0 if self.wraps else len(self.computed)

    @property
    def period(self) -> int:
        """The length of the mask if it begins again."""
        return len(self.computed) if self.wraps else 1

    @property
    def scheduled(self) -> bool:
        """A function of the place in the schedule."""
        return True

    def computes(self, step: Step) -> bool:
        """What the mask says of the step."""
        length = len(self.computed)
        at = step.index if self.is_part(step.count) else step.place
        place = at % length if self.wraps else at
        return step.index == 0 or place >= length or bool(self.computed[place])

    def check(self, count: int | None) -> None:
        """Refuse a loop of another length.

        Raises:
            PolicyError: If `steps` was given and the loop has another number, or fewer
                if they may be a part of it.
        """
        if self.steps is None or count is None or count == self.steps:
            return
        if not self.own or count < self.steps:
            raise PolicyError(
                f"the schedule is for {self.steps} steps and the loop has {count}: "
                "calibrate again, or make the mask for this number of steps"
            )

    def is_part(self, count: int | None) -> bool:
        """Whether it is for a part of a loop of so many steps."""
        return self.own and None not in (count, self.steps) and count != self.steps


@dataclass(frozen=True)
class Ends(Static):
    """Compute the first and the last steps of the schedule, and no other.

    As `Threshold.forced`: ask between them. The first call of a stream computes.

    Args:
        first: How many first steps are computed.
        last: How many last steps are computed.
        steps: The number of steps, if the loop does not tell it.
        lenient: Whether a loop whose number of steps cannot be told simply has no last
            steps, instead of being refused.

    Raises:
        PolicyError: If a number is negative.
    """

    first: int = 1
    last: int = 0
    steps: int | None = None
    lenient: bool = False

    def __post_init__(self) -> None:
        check_count("the number of first steps", self.first, 0)
        check_count("the number of last steps", self.last, 0)
        if self.steps is not None:
            check_count("the number of steps", self.steps, 1)

    @property
    def horizon(self) -> int:
        """After the first steps."""
        return self.first

    @property
    def closing(self) -> int:
        """The last steps."""
        return self.last

    @property
    def scheduled(self) -> bool:
        """A function of the place in the schedule."""
        return True

    def computes(self, step: Step) -> bool:
        """Whether the step is a first or a last one.

        Raises:
            PolicyError: If the last steps are computed and cannot be told.
        """
        if step.index == 0 or step.place < self.first:
            return True
        if not self.last or (self.lenient and self._known(step.count) is None):
            return False
        return step.place >= self._count(step.count) - self.last

    def check(self, count: int | None) -> None:
        """Refuse a loop whose last steps cannot be told, or of another length.

        Raises:
            PolicyError: If the number of steps is not known, or not `steps`.
        """
        if self.last and not self.lenient:
            self._count(count)
        if None not in (self.steps, count) and self.steps != count:
            raise PolicyError(
                f"the policy is for {self.steps} steps and the loop has {count}"
            )

    def _known(self, count: int | None) -> int | None:
        return self.steps if count is None else count

    def _count(self, count: int | None) -> int:
        known = self._known(count)
        if known is None:
            raise PolicyError(
                f"the last {self.last} steps are to be computed, and the number of "
                "steps cannot be told. Pass compile(scheduler=...), give "
                "cache_context(num_inference_steps=...), or the policy's steps=."
            )
        return known


@dataclass(frozen=True)
class Interval(Static):
    """Compute every n-th step; reuse between, inside a timestep window.

    The decision of Pyramid Attention Broadcast (Zhao et al., arXiv 2408.12588) as
    diffusers defines it: steps are counted from the stream's first call whether or
    not they lie in the window, and the window is open at both ends.

    Args:
        every: Compute when ``index % every == 0``; 1 never reuses.
        window: Reuse only while ``low < timestep < high``, in the scheduler's units;
            None reuses at any timestep.

    Raises:
        PolicyError: If `every` is not a positive integer or the window not ordered.
    """

    every: int
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_count("an interval", self.every, 1)
        if self.window is not None:
            check_window(self.window)

    @property
    def period(self) -> int:
        """The interval."""
        return self.every

    @property
    def edges(self) -> tuple[float, ...]:
        """The ends of the window."""
        return () if self.window is None else tuple(self.window)

    def computes(self, step: Step) -> bool:
        """Whether the step is a multiple of the interval, or outside the window.

        Raises:
            PolicyError: If there is a window and the timestep is not known.
        """
        if step.index % self.every == 0:
            return True
        if self.window is None:
            return False
        if step.timestep is None:
            raise PolicyError(
                f"the window {self.window} needs the timestep of each step, and none "
                "can be had. Pass compile(scheduler=...), set the config's "
                "current_timestep_callback, or give cache_context(timestep=...)."
            )
        return not self.window[0] < step.timestep < self.window[1]
