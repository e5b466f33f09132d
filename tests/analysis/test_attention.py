"""Which module calls are attention, and what flows into them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graphcache.passes.find_regions import FindRegions
from tests.models import WIDTH, TinyAttention
from tests.programs import source


class Wrapper(nn.Module):
    """A model of one attention."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """f32[1, 4, 8], f32[1, 3, 8] and f32[4, 8] to f32[1, 4, 8]."""
        given = self.attn(x + 1, y * 2, table)
        return (given[0] if isinstance(given, tuple) else given) + 1


INPUTS = {
    "x": torch.ones(1, 4, WIDTH),
    "y": torch.ones(1, 3, WIDTH),
    "table": torch.ones(4, WIDTH),
}


def found(attn: nn.Module) -> list[tuple[str, str]]:
    regions = FindRegions().run(source(Wrapper(attn).eval(), INPUTS)).program.regions
    return [(r.name, r.flow) for r in regions if r.kind == "attention"]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value)


class Joint(TinyAttention):
    """Both sequences attend to both."""

    results = 2

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """The second result is dead in the last block of a model."""
        both = torch.cat([y, x * table], 1)
        out = attend(self.to_q(both), self.to_k(both), self.to_v(both))
        return out[:, 3:], out[:, :3]


class JointLate(TinyAttention):
    """Joined behind the projections, and one of them rotated."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """One result."""
        queries = torch.cat([self.to_q(y), self.to_q(x) * table], 1)
        keys = torch.cat([self.to_k(y), self.to_k(x) * table], 1)
        return attend(queries, keys, torch.cat([self.to_v(y), self.to_v(x)], 1))[:, 3:]


class WithCache(TinyAttention):
    """Keys of its own and of earlier frames, at places of their own."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Self-attention still."""
        keys = torch.cat([y, self.to_k(x)], 1) * table[0]
        return attend(self.to_q(x) * table[1:2], keys, torch.cat([y, self.to_v(x)], 1))


class CrossByTable(TinyAttention):
    """Queries and keys share a table, not a sequence."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Cross-attention."""
        keys = self.to_k(y) * table[:3]
        return attend(self.to_q(x) * table, keys, self.to_v(y))


class Rotated(TinyAttention):
    """Concatenates halves of one sequence, each with a table of its own."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Self-attention."""
        query, key = (
            torch.cat([part[..., :4] * table[:, :4], part[..., 4:] * y[:, :1, 4:]], -1)
            for part in (self.to_q(x), self.to_k(x))
        )
        return attend(query, key, self.to_v(x))


class TablesToo(TinyAttention):
    """Works out something else for later blocks."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Its second result is no sequence."""
        return attend(self.to_q(x), self.to_k(x), self.to_v(x)), table * 2


class UsesBoth(Wrapper):
    """Reads both results."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Their sum."""
        given, other = self.attn(x + 1, y * 2, table)
        return given + other.sum()


@pytest.mark.parametrize(
    ("kind", "flow"),
    [
        (Joint, "joint"),
        (JointLate, "joint"),
        (WithCache, "self"),
        (CrossByTable, "cross"),
        (Rotated, "self"),
    ],
)
def test_flow_is_told_by_the_sequences(kind: type[nn.Module], flow: str) -> None:
    assert found(kind()) == [("attn", flow)]


def test_a_second_result_counts_if_it_is_a_sequence() -> None:
    for kind, flow in ((Joint, "joint"), (TablesToo, "self")):
        program = source(UsesBoth(kind()).eval(), INPUTS)
        (region,) = FindRegions().run(program).program.regions
        assert (region.flow, len(region.results)) == (flow, 2)


class Core(nn.Module):
    """Attention without weights."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of what it is given."""
        return attend(query, key, value)


class AroundCore(TinyAttention):
    """Leaves the product to a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core()

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Self-attention."""
        return self.to_out(self.core(self.to_q(x), self.to_k(x), self.to_v(x)))


class Block(nn.Module):
    """A block that projects what a module without weights attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([AroundCore()])

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """As its layer."""
        return self.layers[0](x, y, table) + x


def test_attention_without_weights_is_that_of_the_module_around_it() -> None:
    assert found(AroundCore()) == [("attn", "self")]


def test_a_block_is_no_attention() -> None:
    assert found(Block()) == [("attn.layers.0.core", "cross")]


class LinearAttention(TinyAttention):
    """Products of keys and values first, and no softmax."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Linear in the number of tokens."""
        query, key = self.to_q(x).relu(), self.to_k(x).relu()
        state = key.transpose(1, 2) @ self.to_v(x)
        return self.to_out(query @ (state / key.sum(1, keepdim=True).mT))


class Mixer(LinearAttention):
    """The same, by a name that does not say so."""


class LowRank(TinyAttention):
    """Chained products with weights, which is no attention."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """A projection of a projection."""
        return x @ self.to_q.weight @ self.to_k.weight


class Biased(TinyAttention):
    """A softmax whose scores are a sum of products."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Any:
        """Cross-attention, found once."""
        query, key = self.to_q(x), self.to_k(y)
        bias = (query @ table.mT) @ (table @ key.mT)
        return (query @ key.mT + bias).softmax(-1) @ self.to_v(y)


def test_linear_attention_is_two_chained_products_in_an_attention() -> None:
    assert found(LinearAttention()) == [("attn", "self")]
    assert found(Mixer()) == []
    assert found(LowRank()) == []
    assert found(Biased()) == [("attn", "cross")]
