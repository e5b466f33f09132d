"""Progress: whether a loop went on, stayed or began again, call by call."""

from __future__ import annotations

import enum
from dataclasses import dataclass

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
    always count up.

    Attributes:
        calls: Calls since the loop began.
        begin: Position at which the loop began, where nobody but us counts.
        position: Position of the latest call, if that is known.
        timestep: Timestep of the latest call, as it was given.
        ascending: Whether the timestep counts up; None until a second one was seen.
        rises: How often in a row the timestep rose and was taken for a new loop.
    """

    calls: int = 0
    begin: int | None = None
    position: int | None = None
    timestep: float | None = None
    ascending: bool | None = None
    rises: int = 0

    def see(self, position: int | None, timestep: float | None) -> Move:
        """Take in the next call; what it is to the one before."""
        move = self._judge(position, timestep)
        self.calls += 1
        self.position, self.timestep = position, timestep
        if move is Move.ON:
            self.rises = 0
        return move

    def restart(self) -> None:
        """The latest call was the first of a new loop."""
        self.calls = 1
        self.begin = self.ascending = None

    def forget(self) -> None:
        """The next call is the first of a new loop."""
        self.restart()
        self.calls = 0

    def timestep_of(self, given: float | None, argued: bool) -> float | None:
        """A timestep that falls as the noise does.

        Args:
            given: As it was given.
            argued: Whether the module's argument gave it, which may count up.
        """
        if given is None or not (argued and self.ascending):
            return given
        return FULL - given

    def _judge(self, position: int | None, timestep: float | None) -> Move:
        if not self.calls:
            return Move.FIRST
        by_timestep = self._by_timestep(timestep)
        if position is None or self.position is None:
            self.rises += by_timestep is Move.BACK and not self.ascending
            return by_timestep
        if position == self.position:
            return Move.SAME
        return Move.ON if position > self.position else Move.BACK

    def _by_timestep(self, timestep: float | None) -> Move:
        latest = self.timestep
        if timestep is None or latest is None:
            return Move.ON
        if timestep == latest:
            return Move.SAME
        rises = timestep > latest
        if self.ascending is None:
            self.ascending = rises and latest < _FIRST_OF_A_RISE
        return Move.ON if rises == self.ascending else Move.BACK
