"""The clock of a pipeline: the scheduler and the timestep that it has now.

A pipeline's scheduler is replaced, and read, through the pipeline. It is held weakly,
because it holds the transformer that holds this.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor


class PipelineClock:
    """What a compiled transformer asks of the pipeline that it belongs to.

    Called, it returns the pipeline's scheduler. A pipeline that is gone leaves the
    scheduler that it had last. A copy, or what is unpickled, belongs to no pipeline
    until `attach` says so; one that is copied with its pipeline belongs to the copy.

    Args:
        pipe: A pipeline of diffusers.
        scheduler: Name of the component that is its scheduler.
    """

    def __init__(self, pipe: Any = None, scheduler: str = "scheduler") -> None:
        self.scheduler = scheduler
        self._latest: Any = None
        self._pipe: weakref.ref[Any] | None = None
        if pipe is not None:
            self.attach(pipe)

    def attach(self, pipe: Any) -> None:
        """Belong to a pipeline; it may still be empty."""
        self._pipe = weakref.ref(pipe)

    @property
    def pipe(self) -> Any:
        """The pipeline; None if there is none, or no longer."""
        return None if self._pipe is None else self._pipe()

    def __call__(self) -> Any:
        """The scheduler, which has ``timesteps``; None if there is none."""
        found = getattr(self.pipe, self.scheduler, None)
        if found is not None and hasattr(found, "timesteps"):
            self._latest = found
        return self._latest

    def timestep(self) -> Any:
        """The pipeline's current timestep; None if it does not say, or is not running.

        Another pipeline may run the transformer while this one keeps the timestep at
        which it was interrupted. That is no timestep of the scheduler's loop of now.
        """
        current = getattr(self.pipe, "current_timestep", None)
        if not isinstance(current, Tensor):
            return current
        timesteps = getattr(self(), "timesteps", None)
        if not isinstance(timesteps, Tensor) or not _is_part(current, timesteps):
            return None
        return current

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineClock:
        """The clock of the pipeline's copy, if it is copied too."""
        pipe = self.pipe
        copied = None if pipe is None else memo.get(id(pipe))
        return PipelineClock(copied, self.scheduler)

    def __reduce__(self) -> tuple[type[PipelineClock], tuple[None, str]]:
        # What is pickled with the pipeline is attached by what the pipeline holds.
        return PipelineClock, (None, self.scheduler)


def _is_part(timestep: Tensor, timesteps: Tensor) -> bool:
    """Whether one tensor is an element of the other, not of an earlier one."""
    if timestep.device != timesteps.device:
        return False
    mine, theirs = timestep.untyped_storage(), timesteps.untyped_storage()
    return mine.data_ptr() == theirs.data_ptr()
