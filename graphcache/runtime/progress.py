"""Progress: whether a loop went on, stayed or began again, call by call."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from graphcache.runtime.times import Time

FULL = 1000.0
"""The timestep of pure noise, in the scheduler's units."""

_FIRST_OF_A_RISE = 50.0


class Move(enum.Enum):
    """What one call is to the call before it."""

    FIRST = enum.auto()
    ON = enum.auto()
    SAME = enum.auto()
    BACK = enum.auto()


@dataclass
class Progress:
    """How far a loop has come.

    A loop that begins below a timestep of 50 and rises at its second one counts up, as
    models do that take ``1000 - t``; every other counts down. A loop that goes against
    its direction has begun again. Positions are better evidence than timesteps, and
    always count up; but one position has one timestep, the timesteps of a loop go one
    way, and a loop has one number of steps.

    Attributes:
        calls: Calls since the loop began.
        begin: Position at which the loop began, where nobody but us counts.
        position: Position of the latest call, if that is known.
        time: Time of the latest call, as it was given.
        count: Steps of the loop, if the caller says so.
        ascending: Whether the timestep counts up; None until a second one was seen.
        rises: How often in a row the timestep rose and was taken for a new loop.
        false_starts: How often in a row a loop of one call was followed by another one
            at another timestep.
    """

    calls: int = 0
    begin: int | None = None
    position: int | None = None
    time: Time = field(default_factory=lambda: Time(None))
    count: int | None = None
    ascending: bool | None = None
    rises: int = 0
    false_starts: int = 0
    _rising: bool | None = None

    def see(
        self,
        position: int | None,
        time: Time,
        count: int | None = None,
        *,
        doubted: bool = False,
    ) -> Move:
        """Take in the next call; what it is to the one before.

        Args:
            position: Its place in the schedule, if that is known.
            time: When it is.
            count: Steps of the loop, if the caller says so.
            doubted: Whether the time comes from another source than the position, so
                that one can contradict the other.
        """
        move = self._judge(position, time, count, doubted)
        if move is Move.ON:
            self.rises = self.false_starts = 0
        elif move is Move.BACK:
            self.false_starts += self.calls == 1
        self.calls += 1
        self.position, self.time, self.count = position, time, count
        return move

    def restart(self) -> None:
        """The latest call was the first of a new loop."""
        self.calls = 1
        self.begin = self.ascending = self._rising = None

    def forget(self) -> None:
        """The next call is the first of a new loop."""
        self.restart()
        self.calls = 0

    def timestep_of(self, time: Time) -> float | None:
        """The timestep of a call, falling as the noise does."""
        if time.value is None or not (time.argued and self.ascending):
            return time.value
        return FULL - time.value

    def _judge(
        self, position: int | None, time: Time, count: int | None, doubted: bool
    ) -> Move:
        if not self.calls:
            return Move.FIRST
        if None not in (count, self.count) and count != self.count:
            return Move.BACK
        if position is None or self.position is None:
            by_timestep = self._by_timestep(time)
            self.rises += by_timestep is Move.BACK and not self.ascending
            return by_timestep
        if position < self.position:
            return Move.BACK
        self._learn(time)
        move = Move.SAME if position == self.position else Move.ON
        return Move.BACK if doubted and self._contradicts(time, move) else move

    def _contradicts(self, time: Time, move: Move) -> bool:
        """Whether the timestep cannot be that of the loop's next position."""
        now, latest = time.progress, self.time.progress
        if now is None or latest is None or now == latest:
            return False
        if time.frames != self.time.frames:
            return False
        if move is Move.SAME:
            return True
        rising = now > latest
        if self._rising is None:
            self._rising = rising
        return rising != self._rising

    def _by_timestep(self, time: Time) -> Move:
        now, latest = time.progress, self.time.progress
        if now is None or latest is None:
            return Move.ON
        if time.frames != self.time.frames:
            # Frames came or went, so that the means do not compare. One that comes is
            # all noise, and those that were there go on.
            return Move.BACK if _rose(time, self.time) else Move.ON
        if now == latest:
            return Move.SAME
        self._learn(time)
        return Move.ON if (now > latest) == self.ascending else Move.BACK

    def _learn(self, time: Time) -> None:
        """Which way the timestep counts, at the second one of a loop."""
        now, latest = time.progress, self.time.progress
        if self.ascending is None and None not in (now, latest) and now != latest:
            assert now is not None
            assert latest is not None
            self.ascending = now > latest and latest < _FIRST_OF_A_RISE


def _rose(now: Time, latest: Time) -> bool:
    """Whether the frame with the least noise has more of it than before."""
    least = now.value if now.least is None else now.least
    before = latest.value if latest.least is None else latest.least
    return least is not None and before is not None and least > before
