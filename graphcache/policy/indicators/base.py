"""What a `Threshold` needs of an indicator.

An indicator is a set of small functions over tensors, traced into the graph. `measure`
runs at every step and gives the score; `update` or `carry` runs once the decision is
known and gives the indicator's new buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from graphcache.policy.scalars import Scalar

if TYPE_CHECKING:
    from graphcache.policy.probes import Probe

Tensors = Sequence[Tensor]


class Indicator(Protocol):
    """What a `Threshold` needs of an indicator; its functions are traceable and pure.

    Attributes:
        probe: Which values of the graph are observed.
        inclusive: Whether a score equal to the threshold computes.
        scalars: Numbers that the functions read, in order.
    """

    @property
    def probe(self) -> Probe:
        """Which values of the graph are observed."""
        ...

    @property
    def inclusive(self) -> bool:
        """Whether a score equal to the threshold computes."""
        ...

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """Numbers that `measure` reads, in order."""
        ...

    def initial(self, observed: Tensors) -> Tensors:
        """Example buffers: their shapes and dtypes. They start as zeros."""
        ...

    def measure(self, observed: Tensors, buffers: Tensors, scalars: Tensors) -> Tensors:
        """The score, a 0-dim tensor, and what `update` and `carry` need of it.

        At the first step of a stream the buffers hold zeros and the score is not
        asked.
        """
        ...

    def update(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """The buffers after a computed step.

        Args:
            measured: What `measure` returned.
            buffers: The buffers before the step.
        """
        ...

    def carry(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """The buffers after a reused step."""
        ...
