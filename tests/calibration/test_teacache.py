"""The rescaling polynomial against hooks and numpy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import PolicyError, TeaCacheCalibration, TeaCacheFit, calibrate
from graphcache.calibration.teacache import polynomial_fit
from tests.models import run_loop, tiny
from tests.parts import trunk
from tests.references.tea_cache import modulated
from tests.zoo import ZOO, TinyModel, denoise, make

STEPS = 6
Pairs = list[tuple[float, float]]


def changes(values: list[Tensor]) -> list[float]:
    pairs = pairwise(values)
    return [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairs]


def by_hooks(zoo: TinyModel, index: int | None) -> Pairs:
    """The pairs, by hooks on the first and the last block.

    Args:
        zoo: The model.
        index: Which of the last block's results is the latents' stream.
    """
    module = make(zoo)
    first, last = (module.get_submodule(trunk(module)[i]) for i in (0, -1))
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append(modulated(block, args, kwargs))

    def leave(block: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output if index is None else output[index])

    first.register_forward_pre_hook(enter, with_kwargs=True)
    last.register_forward_hook(leave)
    denoise(module, zoo, STEPS)
    return list(zip(changes(inputs), changes(outputs), strict=True))


@pytest.mark.parametrize(("name", "index"), [("pixart", None), ("flux", 1)])
def test_pairs_are_those_of_hooks(name: str, index: int | None) -> None:
    zoo = ZOO[name]
    method = TeaCacheCalibration(degree=2)
    fit = calibrate(make(zoo), method, lambda m: denoise(m, zoo, STEPS))
    expected = np.array(by_hooks(zoo, index))
    assert np.array(fit.pairs) == pytest.approx(expected, rel=1e-5)
    assert fit.coefficients == pytest.approx(np.polyfit(*expected.T, 2), rel=1e-2)
    assert not fit.timestep_only


def tiny_fit(**options: Any) -> TeaCacheFit:
    method = TeaCacheCalibration(**options)
    return calibrate(tiny(), method, lambda m: [run_loop(m, 9, seed=s) for s in (1, 2)])


def test_the_fit_is_that_of_all_trajectories_together() -> None:
    fit = tiny_fit()
    assert len(fit.pairs) == 2 * 8
    assert fit.trajectories == 2
    assert len(fit.coefficients) == 5
    x, y = np.array(fit.pairs).T
    assert np.polyval(fit.coefficients, x) == pytest.approx(
        np.polyval(np.polyfit(x, y, 4), x), rel=1e-6
    )
    off = np.polyval(fit.coefficients, x) - y
    assert fit.error == pytest.approx(float((off**2).mean() ** 0.5))


def observed_by_hooks(seed: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What the first block reads of the timestep, and the stream before and after."""
    module = tiny()
    shifts: list[Tensor] = []
    before: list[Tensor] = []
    after: list[Tensor] = []
    module.blocks[0].register_forward_pre_hook(
        lambda _, args: (before.append(args[0]), shifts.append(args[2])) and None
    )
    module.blocks[-1].register_forward_hook(lambda _, args, out: after.append(out))
    run_loop(module, 9, seed=seed)
    return shifts, before, after


def test_the_timestep_alone_and_what_the_blocks_add() -> None:
    fit = tiny_fit(timestep_only=True, residual=True, degree=1)
    assert fit.timestep_only
    expected: Pairs = []
    for seed in (1, 2):
        shifts, before, after = observed_by_hooks(seed)
        added = [b - a for a, b in zip(before, after, strict=True)]
        expected += zip(changes(shifts), changes(added), strict=True)
    assert np.array(fit.pairs) == pytest.approx(np.array(expected), rel=1e-4)


def test_what_is_fitted_is_what_the_policy_needs() -> None:
    fit = tiny_fit(degree=2)
    threshold = 2.5 * sum(y for _, y in fit.pairs) / len(fit.pairs)
    policy = graphcache.teacache(threshold, fit.coefficients)
    subject = graphcache.compile(tiny(), policy, backend="eager")
    run_loop(subject, 9)
    computed = [step.computed["teacache"] for step in subject.cache_stats.steps]
    assert 1 < sum(computed) < 9


def test_a_polynomial_is_found_again() -> None:
    wanted = [3.0, -2.0, 0.5, 0.25]
    points = torch.linspace(0.05, 0.4, 12).tolist()
    pairs = [(x, float(np.polyval(wanted, x))) for x in points]
    assert polynomial_fit(pairs, 3) == pytest.approx(wanted, rel=1e-6)


def test_changes_that_are_all_the_same_have_a_fit() -> None:
    found = polynomial_fit([(0.5, 0.2), (0.5, 0.4), (0.5, 0.6)], 1)
    assert np.polyval(found, 0.5) == pytest.approx(0.4)
    assert np.isfinite(found).all()


def test_too_few_steps_and_bad_degrees_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"degree 4 needs at least 5 .* and 3 were"):
        calibrate(tiny(), "teacache", lambda module: run_loop(module, 4))
    with pytest.raises(PolicyError, match="degree of the polynomial must be a pos"):
        TeaCacheCalibration(degree=0)
