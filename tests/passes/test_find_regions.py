"""find-regions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graphcache.passes.find_regions import FindRegions
from graphcache.program import Region
from tests.models import SoftmaxAttention, TinyAttention, tiny
from tests.programs import source


def regions(
    module: nn.Module,
    inputs: dict[str, Tensor] | None = None,
    kind: str = "attention",
) -> list[Region]:
    found = FindRegions().run(source(module, inputs)).program.regions
    return [region for region in found if region.kind == kind]


@pytest.mark.parametrize("attention", [TinyAttention, SoftmaxAttention])
def test_finds_self_and_cross_attention_by_dataflow(
    attention: type[TinyAttention],
) -> None:
    found = regions(tiny(depth=2, cross=True, attention=attention))
    assert [(region.name, region.flow) for region in found] == [
        ("blocks.0.attn1", "self"),
        ("blocks.0.attn2", "cross"),
        ("blocks.1.attn1", "self"),
        ("blocks.1.attn2", "cross"),
    ]
    assert [region.declares_cross for region in found] == [False, True] * 2
    assert found[0].module_class.endswith(attention.__qualname__)


def test_a_region_holds_the_whole_call_and_names_its_edges() -> None:
    (region,) = regions(tiny(depth=1))
    assert "scaled_dot_product_attention" in region.nodes
    assert region.results == ("linear_4",)
    assert region.operands[0] == "add"
    assert set(region.nodes).isdisjoint(region.operands)


class Joint(nn.Module):
    """Two streams attend to each other inside one module."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = JointAttention()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """f32[1, 2, 4] and f32[1, 3, 4] to f32[1, 5, 4]."""
        a, b = self.attn(x + 1, y + 1)
        return torch.cat([b, a * 2], 1)


class JointAttention(nn.Module):
    """Joint attention."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Attend over both, return both."""
        both = torch.cat([x, y], 1)
        out = functional.scaled_dot_product_attention(both, both, both)
        return out.split([2, 3], 1)


JOINT = {"x": torch.zeros(1, 2, 4), "y": torch.zeros(1, 3, 4)}


def test_joint_attention_has_both_streams_as_results() -> None:
    (region,) = regions(Joint().eval(), JOINT)
    assert region.flow == "joint"
    assert len(region.results) == 2


class Twice(nn.Module):
    """Calls one attention module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = TinyAttention()

    def forward(self, x: Tensor) -> Tensor:
        """f32[1, 2, 8] to f32[1, 2, 8]."""
        return self.attn(self.attn(x) + 1)


def test_two_calls_of_one_module_are_two_regions() -> None:
    found = regions(Twice().eval(), {"x": torch.zeros(1, 2, 8)})
    assert [region.name for region in found] == ["attn", "attn@1"]
    assert {region.path for region in found} == {"attn"}
    assert set(found[0].nodes).isdisjoint(found[1].nodes)


@torch.library.custom_op("graphcache_tests::my_attn", mutates_args=())
def my_attn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """An attention library's own operator."""
    return functional.scaled_dot_product_attention(query, key, value)


@my_attn.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(query)


class Foreign(nn.Module):
    """Calls it in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = ForeignAttention()

    def forward(self, x: Tensor) -> Tensor:
        """f32[1, 2, 4] to the same."""
        return self.attn(x) + 1


class ForeignAttention(nn.Module):
    """Attention by a registered operator."""

    def forward(self, x: Tensor) -> Tensor:
        """f32[1, 2, 4] to the same."""
        return my_attn(x, x, x)


def test_registered_attention_operators_are_found_by_name() -> None:
    (region,) = regions(Foreign().eval(), {"x": torch.zeros(1, 2, 4)})
    assert region.name == "attn"


class NoAttention(nn.Module):
    """A softmax that is no attention, and attention in no module of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """f32[1, 2, 4] to f32[1, 2, 4]."""
        return functional.scaled_dot_product_attention(x, x, x.softmax(-1))


def test_does_not_fire_on_a_lone_softmax_or_at_the_root() -> None:
    assert regions(NoAttention().eval(), {"x": torch.zeros(1, 2, 4)}) == []


def test_is_idempotent() -> None:
    once = FindRegions().run(source(tiny()))
    assert once.edits == 4
    assert FindRegions().run(once.program).edits == 0
