"""What is held, and what is added again."""

from __future__ import annotations

import torch

from graphcache.policy import HoldOutput, HoldResidual, Step, Zeros
from tests.policy.gates import Gate, drifting


def test_hold_output_keeps_and_returns_the_last_computed() -> None:
    hold = HoldOutput()
    old, new = [torch.zeros(2)], [torch.ones(2)]
    assert hold.update(new, (), old, ()) is new
    outputs, kept = hold.predict((), new, ())
    assert outputs is new
    assert kept is new
    assert hold.initial(new, ()) is new
    assert not hold.continues


def test_hold_residual_adds_to_each_stream_what_was_added_last() -> None:
    gate = Gate(HoldResidual())
    before, after = drifting(3, seed=1), drifting(3, seed=2)
    other = drifting(3, (4,), seed=3)
    given = gate(Step(0), [after[0], other[0]], [before[0], None], computes=True)
    assert torch.equal(given[0], after[0])
    for index in (1, 2):
        hidden, held = gate(
            Step(index),
            [after[index], other[index]],
            [before[index], None],
            computes=False,
        )
        assert torch.equal(hidden, before[index] + (after[0] - before[0]))
        assert torch.equal(held, other[0])


def test_zeros_have_the_shapes_of_the_outputs_and_read_nothing() -> None:
    gate = Gate(Zeros())
    outputs = [torch.ones(2, 3), torch.ones(4, dtype=torch.bfloat16)]
    gate(Step(0), outputs, computes=True)
    predicted = gate(Step(1), outputs, computes=False)
    assert [p.shape for p in predicted] == [(2, 3), (4,)]
    assert not any(p.any() for p in predicted)
