"""The gate op: its reference body is its meaning."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from graphcache import VerifyError
from graphcache.ops import gate


def branch(factor: float, columns: int = 2) -> fx.GraphModule:
    """(x, s) -> (factor * x, s + 1), the result with so many columns."""
    graph = fx.Graph()
    x, s = graph.placeholder("x"), graph.placeholder("s")
    aten = torch.ops.aten
    scaled = graph.call_function(aten.mul.Tensor, (x, factor))
    cut = graph.call_function(aten.slice.Tensor, (scaled, 1, 0, columns))
    graph.output((cut, graph.call_function(aten.add.Tensor, (s, 1))))
    return fx.GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize(("predicate", "factor"), [(True, 2.0), (False, 3.0)])
def test_runs_the_branch_that_the_predicate_names(
    predicate: bool, factor: float
) -> None:
    x, s = torch.randn(3, 2), torch.zeros(1)
    with torch.no_grad():
        y, state = gate(torch.tensor(predicate), branch(2.0), branch(3.0), [x], [s])
    assert torch.equal(y, x * factor)
    assert torch.equal(state, s + 1)


def test_fake_has_the_types_of_both_branches() -> None:
    with FakeTensorMode() as mode:
        x, s = mode.from_tensor(torch.zeros(3, 2)), mode.from_tensor(torch.zeros(1))
        predicate = mode.from_tensor(torch.tensor(True))
        y, state = gate(predicate, branch(2.0), branch(3.0), [x], [s])
    assert y.shape == (3, 2)
    assert state.shape == (1,)


def test_fake_refuses_branches_of_different_type() -> None:
    with FakeTensorMode() as mode:
        x, s = mode.from_tensor(torch.zeros(3, 2)), mode.from_tensor(torch.zeros(1))
        predicate = mode.from_tensor(torch.tensor(True))
        with pytest.raises(VerifyError, match=r"compute returns \(f32\[3, 2\]"):
            gate(predicate, branch(2.0), branch(3.0, columns=1), [x], [s])
