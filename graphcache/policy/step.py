"""Steps: where a loop is, which is all that a static decision may ask."""

from __future__ import annotations

from dataclasses import dataclass

Signature = tuple[bool, ...]
"""One bool per predicate, in the program's predicate order; True computes."""


@dataclass(frozen=True)
class Step:
    """Where the loop is.

    Attributes:
        index: How many calls of this stream came before, since its reset.
        timestep: In the scheduler's units, usually 0 to 1000; None if not known.
        position: Index in the schedule, by the caller's context or the scheduler; a
            loop that begins in the middle does not begin at 0. None if not known.
        count: Steps of the schedule; None if not known.
        sigma: Noise level, 0 to 1; None if not known.
        begun: The `index` at which the buffers were last empty: 0, unless the module,
            a shape or the prompt changed in mid-generation.
    """

    index: int
    timestep: float | None = None
    position: int | None = None
    count: int | None = None
    sigma: float | None = None
    begun: int = 0

    @property
    def age(self) -> int:
        """How many calls came before, since the buffers were empty."""
        return self.index - self.begun

    @property
    def fresh(self) -> bool:
        """Whether the buffers are empty, so that everything computes."""
        return self.index == self.begun

    @property
    def place(self) -> int:
        """The index in the schedule, or the count of calls where that is not known."""
        return self.index if self.position is None else self.position
