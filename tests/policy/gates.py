"""A gate and a decision in plain Python: predictors and indicators, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from graphcache.policy import Predictor, Scalar, Step, Threshold

READS = ("_local_scalar_dense", "item", "_assert_async")


class Traced:
    """A function of lists of tensors, held to what its graph gives.

    The graph is traced with fake tensors, once, so that it cannot depend on their
    values. It may neither change a tensor in place nor read one to the host.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.graph: Any = None

    def __call__(self, *groups: Sequence[Any]) -> Any:
        """What the function gives; its graph has to give the same."""
        flat, spec = pytree.tree_flatten([list(group) for group in groups])

        def leaves(*values: Any) -> Any:
            return self.function(*pytree.tree_unflatten(values, spec))

        if self.graph is None:
            self.graph = make_fx(leaves, tracing_mode="fake")(*flat)
            _refuse_effects(self.graph)
        before = pytree.tree_map_only(Tensor, torch.clone, flat)
        direct = leaves(*flat)
        assert _equal(self.graph(*flat), direct)
        assert _equal(flat, before)
        return direct


def _refuse_effects(graph: torch.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable, node
            assert not any(name in str(node.target) for name in READS), node


def _equal(left: Any, right: Any) -> bool:
    ours, theirs = pytree.tree_leaves(left), pytree.tree_leaves(right)
    return len(ours) == len(theirs) and all(
        torch.equal(x.nan_to_num(), y.nan_to_num())
        for x, y in zip(ours, theirs, strict=True)
        if x is not None
    )


def values_of(scalars: Sequence[Scalar], step: Step) -> list[Tensor]:
    """The scalars as the host gives them: 0-dim f64."""
    return [torch.tensor(scalar.of(step), dtype=torch.float64) for scalar in scalars]


@dataclass
class Gate:
    """One gate of one stream.

    Attributes:
        predictor: What stands in for the region.
        buffers: Its buffers; None before the first step.
    """

    predictor: Predictor
    buffers: list[Tensor] | None = None

    def __post_init__(self) -> None:
        self.update = Traced(self.predictor.update)
        self.predict = Traced(self.predictor.predict)

    def __call__(
        self,
        step: Step,
        outputs: Sequence[Tensor],
        operands: Sequence[Tensor | None] = (),
        *,
        computes: bool,
    ) -> list[Tensor]:
        """The gate's outputs: those given, if the region is computed."""
        predictor = self.predictor
        if self.buffers is None:
            example = predictor.initial(outputs, operands)
            self.buffers = [torch.zeros_like(value) for value in example]
        scalars = values_of(predictor.scalars, step)
        if computes:
            held = self.update(outputs, operands, self.buffers, scalars)
            result = list(outputs)
        else:
            result, held = self.predict(operands, self.buffers, scalars)
        types = [(v.shape, v.dtype) for v in held]
        assert types == [(v.shape, v.dtype) for v in self.buffers]
        assert [v.dtype for v in result] == [v.dtype for v in outputs]
        self.buffers = list(held)
        return list(result)


@dataclass
class Decider:
    """One dynamic decision of one stream.

    Attributes:
        decision: The indicator and the threshold.
        buffers: The indicator's buffers; None before the first step.
        scores: What was measured, by step.
    """

    decision: Threshold
    buffers: list[Tensor] | None = None
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        indicator = self.decision.indicator
        self.measure = Traced(indicator.measure)
        self.update = Traced(indicator.update)
        self.carry = Traced(indicator.carry)

    def __call__(self, step: Step, *observed: Tensor) -> bool:
        """Whether the step is computed."""
        indicator = self.decision.indicator
        if self.buffers is None:
            example = indicator.initial(observed)
            self.buffers = [torch.zeros_like(value) for value in example]
        scalars = values_of(indicator.scalars, step)
        measured = self.measure(observed, self.buffers, scalars)
        assert measured[0].shape == ()
        score = float(measured[0])
        forced = step.index == 0 or self.decision.forced.computes(step)
        computes = forced or self.decision.computes(score, self.decision.threshold)
        self.scores.append(math.inf if forced else score)
        after = self.update if computes else self.carry
        self.buffers = list(after(measured, self.buffers))
        return computes


def drifting(
    steps: int, shape: tuple[int, ...] = (2, 3, 4), *, seed: int = 0, pace: float = 0.1
) -> list[Tensor]:
    """Values that change a little from step to step, and by different amounts."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator)
    found = []
    for index in range(steps):
        found.append(value)
        scale = pace * (1 + math.sin(index))
        value = value + scale * torch.randn(shape, generator=generator)
    return found
