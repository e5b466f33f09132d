"""The eager call ahead of a trace: caches of the module, its state, its failures."""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphcache import CaptureError
from graphcache.capture import capture
from graphcache.signature import CallSignature
from tests.capture.running import captured, equal, run

SHAPES = logging.getLogger("torch.fx.experimental.symbolic_shapes")
X = {"x": torch.arange(6.0).reshape(2, 3)}


class Table:
    """An object that is no module and keeps what its first call works out."""

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.values is None:
            self.values = torch.arange(x.shape[-1]).float()
        return self.values


class Part(nn.Module):
    """Keeps a table as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Works it out once."""
        if self.table is None:
            self.table = torch.arange(x.shape[-1]) * 2.0
        return x + self.table


@lru_cache
def cached_table(size: int) -> Tensor:
    """A table of the process."""
    return torch.arange(size) + 0.5


class Keeping(nn.Module):
    """Keeps tables in every place that modules keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part()
        self.plain = Table()

    def forward(self, x: Tensor) -> Tensor:
        """f32[2, 3] to the same."""
        return self.part(x) * self.plain(x) + cached_table(x.shape[-1])


def test_what_a_module_keeps_of_its_first_call_is_kept_of_tensors() -> None:
    cached_table.cache_clear()
    module = Keeping()
    found = captured(module, X)
    expected = Keeping()(**X)
    assert equal(run(found, module, X), expected)
    for kept in (module.part.table, module.plain.values, cached_table(3)):
        assert type(kept) is Tensor
    # The module is as good as new, and can be captured again.
    assert equal(module(**X), expected)
    assert equal(run(captured(module, X), module, X), expected)


class Stateful(nn.Module):
    """Has a buffer that its forward changes in one of several ways."""

    count: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """f32[2, 3] to the same."""
        if self.how == "in place":
            self.count += 1
        elif self.how == "anew":
            self.count = self.count + 1
        else:
            self.count = torch.arange(3.0)
        return x + self.count


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_state_is_refused_and_left_as_it_was(how: str) -> None:
    module = Stateful(how)
    before = module.count
    with pytest.raises(CaptureError, match="forward writes to count"):
        captured(module, X)
    assert module.count is before
    assert torch.equal(before, torch.zeros(3))


def test_a_buffer_that_every_call_makes_anew_is_no_state() -> None:
    module = Stateful("unread")
    found = captured(module, X)
    assert equal(run(found, module, X), Stateful("unread")(**X))
    assert len(found.program.outputs.results) == 1


class Writes(nn.Module):
    """Writes to its argument."""

    def forward(self, x: Tensor) -> Tensor:
        """Not functional."""
        return x.add_(1)


def test_the_caller_s_tensors_stay_as_they_are() -> None:
    x = torch.zeros(3)
    with pytest.raises(CaptureError, match="forward writes to x"):
        captured(Writes(), {"x": x})
    assert torch.equal(x, torch.zeros(3))


class Shaped(nn.Module):
    """Wants three columns."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """f32[n, 3] to f32[n, 2]."""
        return self.proj(x)


def test_a_call_that_fails_names_the_part_and_the_line() -> None:
    with pytest.raises(CaptureError) as caught:
        captured(Shaped(), {"x": torch.zeros(2, 4)})
    message = str(caught.value)
    assert message.startswith("Shaped fails on this call at proj (")
    assert "test_eager.py:" in message
    assert "RuntimeError: mat1 and mat2 shapes" in message


class Twice(nn.Module):
    """Takes two tensors that may be one object."""

    def forward(self, x: Tensor, y: Tensor, more: list[Tensor]) -> Tensor:
        """Sum of all, told apart."""
        return x + 10 * y + 100 * more[0] + 1000 * more[1]


def test_one_tensor_in_two_places_is_two_inputs() -> None:
    one = torch.ones(2)
    module = Twice()
    found = captured(module, {"x": one, "y": one, "more": [one, one]})
    assert len(found.program.inputs) == 4
    other: dict[str, Any] = {
        "x": one,
        "y": one * 2,
        "more": [one * 3, one * 4],
    }
    assert equal(run(found, module, other), module(**other))


class Outputs(nn.Module):
    """Returns more than tensors."""

    def forward(self, x: Tensor, return_dict: bool = True) -> Any:
        """A tuple with gaps, or a dict without."""
        if return_dict:
            return {"sample": x + 1, "extra": x * 2}
        return x + 1, None, 3, (x * 2,)


def test_what_is_no_tensor_is_returned_as_it_is() -> None:
    module = Outputs()
    found = captured(module, X)
    assert len(found.program.outputs.results) == 2
    assert equal(run(found, module, X), module(**X, return_dict=False))
    results = (X["x"] + 1, X["x"] * 2)
    assert equal(found.named.fill(results), module(**X))


class Unlike(nn.Module):
    """Returns other tensors with `return_dict` than without."""

    def forward(self, x: Tensor, return_dict: bool = True) -> Any:
        """Not the same."""
        return {"sample": x, "sum": x.sum()} if return_dict else (x,)


def test_outputs_that_cannot_be_matched_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"f32\[2, 3\], f32\[\].*return_dict=True"):
        captured(Unlike(), X)


class Doubtful(nn.Module):
    """Guards on a size that depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        """Not exportable."""
        if torch.compiler.is_exporting():
            SHAPES.warning("no user code found")
        return x if x[x > 0].shape[0] == 2 else -x


def test_a_failed_trace_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(io.StringIO())
    SHAPES.addHandler(handler)
    try:
        with pytest.raises(CaptureError, match=r"test_eager\.py:.*GuardOnDataDep"):
            captured(Doubtful(), X)
    finally:
        SHAPES.removeHandler(handler)
    assert handler.stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


class Chosen(nn.Module):
    """Returns as many values as there are."""

    def forward(self, x: Tensor) -> Tensor:
        """f32[2, 3] to f32[n]."""
        return x[x > 1]


def test_a_shape_that_depends_on_data_can_be_returned() -> None:
    module = Chosen()
    found = captured(module, X)
    for given in (X["x"], X["x"] + 10):
        assert equal(run(found, module, {"x": given}), module(given))


class Remembering:
    """A processor that keeps something of every call."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.maps: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.calls = 0
        self.table: list[Tensor] = []

    def __call__(self, hidden: Tensor) -> Tensor:
        """Keep it, and give the hidden state back."""
        if self.what == "bank":
            self.bank = hidden
        elif self.what == "maps":
            self.maps["hidden"] = hidden
        elif self.what == "seen":
            self.seen.append(hidden)
        elif self.what == "calls":
            self.calls += 1
        elif self.what == "table":
            # Made anew at every call, and always the same.
            self.table = [torch.ones(3)]
        elif self.what == "size":
            self.size = float(hidden.shape[0]) ** -0.5
        return hidden


class Remembers(nn.Module):
    """Holds a processor."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.processor = Remembering(what)
        self.linear = nn.Linear(3, 3)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """f32[b, 3] to f32[b, 3]."""
        return self.processor(self.linear(hidden_states))


def _remembers(what: str) -> tuple[Any, dict[str, Tensor]]:
    inputs = {"hidden_states": torch.ones(2, 3), "timestep": torch.tensor([5.0])}
    return Remembers(what).eval().requires_grad_(False), inputs


@pytest.mark.parametrize("what", ["bank", "maps", "seen", "calls"])
def test_what_a_forward_keeps_of_each_call_is_refused(what: str) -> None:
    module, inputs = _remembers(what)
    call = CallSignature(module.forward).bind((), inputs)
    with pytest.raises(CaptureError, match=rf"writes to processor\.{what}"):
        capture(module, call)
    kept = module.processor
    assert (kept.maps, kept.seen, kept.calls) == ({}, [], 0)
    assert not hasattr(kept, "bank")


@pytest.mark.parametrize("what", ["table", "size"])
def test_what_it_works_out_again_alike_is_no_state(what: str) -> None:
    module, inputs = _remembers(what)
    capture(module, CallSignature(module.forward).bind((), inputs))
