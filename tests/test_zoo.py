"""The tiny models: finite, moving, and dependent on everything that they are given."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.models import same
from tests.zoo import (
    ZOO,
    TinyModel,
    denoise,
    denoise_guided,
    denoise_in_turn,
    first_inputs,
    make,
)

# Moving every position alike changes no relative one.
POSITIONS = ("txt_ids", "img_ids")
every_model = pytest.mark.parametrize("tiny", ZOO.values(), ids=lambda tiny: tiny.name)


def changed(leaf: Any) -> Any:
    """Another value of the same type."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_floating_point():
        return leaf * 1.5 + 0.1
    flipped = leaf.clone()
    flipped.flatten()[0] = 0 if flipped.flatten()[0] else 1
    return flipped


def output_of(tiny: TinyModel, inputs: dict[str, Any]) -> Tensor:
    """The module's output for one call."""
    with torch.no_grad():
        output: Tensor = make(tiny)(**inputs, return_dict=False)[0]
    return output


@every_model
def test_every_input_matters(tiny: TinyModel) -> None:
    inputs = first_inputs(tiny)
    plain = output_of(tiny, inputs)
    for name, value in inputs.items():
        if name in POSITIONS or not any(
            isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)
        ):
            continue
        other = output_of(tiny, {**inputs, name: pytree.tree_map(changed, value)})
        assert not torch.equal(other, plain), name


@every_model
def test_a_generation_is_finite_and_moves(tiny: TinyModel) -> None:
    outputs = denoise(make(tiny), tiny, 28)
    assert all(output.isfinite().all() for output in outputs)
    for earlier, later in itertools.pairwise(outputs):
        # A change that every threshold catches, or none, would test nothing.
        assert 0.01 < (later - earlier).norm() / earlier.norm() < 4.0


@every_model
def test_a_generation_depends_on_its_seed_alone(tiny: TinyModel) -> None:
    first, second = (denoise(make(tiny), tiny, 3) for _ in range(2))
    assert same(first, second)
    assert not same(first, denoise(make(tiny), tiny, 3, seed=2))


def test_controls_that_move() -> None:
    fixed, moving = (
        denoise(make(ZOO[name]), ZOO[name], 3)
        for name in ("flux_controlnet", "flux_controlnet_moving")
    )
    assert torch.equal(fixed[0], moving[0])
    assert not torch.equal(fixed[1], moving[1])


def test_guidance_steps_one_half_with_both() -> None:
    tiny = ZOO["cogvideox"]
    outputs = denoise_guided(make(tiny), tiny, 4)
    assert outputs[0].shape[0] == tiny.latents[0]
    # Without guidance of its own the conditional half is a loop like any other.
    unguided = denoise_guided(make(tiny), tiny, 4, guidance=1.0)
    assert torch.equal(unguided[0], outputs[0])
    assert not torch.equal(unguided[1], outputs[1])


class Spy(torch.nn.Module):
    """Records the contexts that a loop enters."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.contexts: list[tuple[str, dict[str, Any]]] = []

    def cache_context(self, name: str, **place: Any) -> Any:
        """Note the context and enter the module's."""
        self.contexts.append((name, place))
        return self.module.cache_context(name, **place)

    def forward(self, **inputs: Any) -> Any:
        """The module's."""
        return self.module(**inputs)


def test_contexts_say_where_the_loop_is() -> None:
    tiny = ZOO["wan"]
    spy = Spy(make(tiny))
    denoise(spy, tiny, 4, placed=True)
    sigmas = [place["sigma"] for _, place in spy.contexts]
    assert 1.0 >= sigmas[0] > 0.99
    assert sigmas == sorted(sigmas, reverse=True)
    assert [place["step_index"] for _, place in spy.contexts] == [0, 1, 2, 3]
    assert {place["num_inference_steps"] for _, place in spy.contexts} == {4}


def test_streams_in_turn_say_the_same_place() -> None:
    tiny = ZOO["wan"]
    spy = Spy(make(tiny))
    denoise_in_turn(spy, tiny, 3, placed=True)
    assert [name for name, _ in spy.contexts] == ["cond", "uncond"] * 3
    places = [place for _, place in spy.contexts]
    assert places[::2] == places[1::2]
    bare = Spy(make(tiny))
    denoise(bare, tiny, 1)
    assert bare.contexts == [("cond_uncond", {})]
