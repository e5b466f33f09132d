"""Traces the functions of predictors and indicators, and checks what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from graphcache.errors import PolicyError
from graphcache.policy.indicators import Indicator
from graphcache.policy.predictors import Predictor
from graphcache.program import TensorType

Group = Sequence[Tensor | None]


def trace(function: Callable[..., Any], *groups: Group) -> fx.Graph:
    """The graph of a function of lists of fake tensors, flat in and out.

    None stands for an operand that there is not; it has no placeholder.
    """

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        values = iter(tensors)
        lists = [[None if v is None else next(values) for v in g] for g in groups]
        return tuple(function(*lists))

    given = [value for group in groups for value in group if value is not None]
    return make_fx(flat)(*given).graph


def scalar_like(value: Tensor) -> Tensor:
    """A fake of the host's scalars: ``f64[]`` on the device of `value`."""
    with value.fake_mode:  # type: ignore[attr-defined]
        return torch.empty((), dtype=torch.float64, device=value.device)


def predicting(predictor: Predictor) -> Callable[..., list[Tensor]]:
    """`predict` with its two lists as one."""

    def predict(operands: Any, buffers: Any, scalars: Any) -> list[Tensor]:
        outputs, held = predictor.predict(operands, buffers, scalars)
        return [*outputs, *held]

    return predict


def check_predict(
    policy: str,
    region: str,
    predictor: Predictor,
    outputs: Sequence[Tensor],
    operands: Group,
) -> None:
    """Hold a predictor to its types: the region's outputs, and its own buffers.

    Raises:
        PolicyError: Naming the policy, the region and the types that differ.
    """
    with outputs[0].fake_mode:  # type: ignore[attr-defined]
        buffers = list(predictor.initial(outputs, operands))
        scalars = [scalar_like(outputs[0]) for _ in predictor.scalars]
        predicted, kept = predictor.predict(operands, buffers, scalars)
        updated = predictor.update(outputs, operands, buffers, scalars)
    for what, got, wanted in (
        ("predicts", predicted, outputs),
        ("keeps, when it predicts,", kept, buffers),
        ("keeps, when the region is computed,", updated, buffers),
    ):
        if _types(got) != _types(wanted):
            raise PolicyError(
                f"the predictor of policy {policy}, {predictor}, does not fit "
                f"{region}: it {what} ({_show(got)}), wanted ({_show(wanted)})"
            )


def check_measure(
    policy: str, indicator: Indicator, observed: Sequence[Tensor]
) -> None:
    """Hold an indicator to its types: a scalar score, and its own buffers.

    Raises:
        PolicyError: Naming the policy and the types that differ.
    """
    with observed[0].fake_mode:  # type: ignore[attr-defined]
        buffers = list(indicator.initial(observed))
        scalars = [scalar_like(observed[0]) for _ in indicator.scalars]
        measured = list(indicator.measure(observed, buffers, scalars))
        updates = indicator.update(measured, buffers)
        carried = indicator.carry(measured, buffers)
    score = measured[0]
    if score.shape or not score.dtype.is_floating_point:
        raise PolicyError(
            f"the score of policy {policy} is {TensorType.of(score)}: an indicator "
            "measures one floating-point number, a 0-dim tensor"
        )
    for what, got in (("computed", updates), ("reused", carried)):
        if _types(got) != _types(buffers):
            raise PolicyError(
                f"the indicator of policy {policy}, {indicator}, keeps after a {what} "
                f"step ({_show(got)}), wanted its buffers ({_show(buffers)})"
            )


def _types(values: Sequence[Tensor]) -> list[TensorType]:
    return [TensorType.of(value) for value in values]


def _show(values: Sequence[Tensor]) -> str:
    return ", ".join(str(TensorType.of(value)) for value in values)
