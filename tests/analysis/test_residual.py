"""The residual path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from graphcache.analysis.residual import continued, origins, pair
from graphcache.program import output_values, placeholders


def traced(function: Callable[..., Any], *values: Tensor) -> fx.Graph:
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(value) for value in values]
    return make_fx(function, tracing_mode="fake")(*fakes).graph


TEXT, IMAGE = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)


def joined(text: Tensor, image: Tensor) -> tuple[Tensor, ...]:
    """Two streams of one shape go through one joined sequence."""
    both = torch.cat([text, image], 1)
    both = both + both.sin()
    first, second = both.split([3, 3], 1)
    return second, first


def test_streams_of_one_shape_are_told_apart_by_their_place_in_the_sequence() -> None:
    graph = traced(joined, TEXT, IMAGE)
    text, image = placeholders(graph)
    second, first = output_values(graph)
    assert pair(second, [text, image]) is image
    assert pair(first, [text, image]) is text


def sliced(text: Tensor, image: Tensor) -> Tensor:
    """As Flux does: the end of the sequence."""
    return torch.cat([text, image], 1)[:, 3:] * 1 + 0


def test_a_product_ends_the_path() -> None:
    graph = traced(sliced, TEXT, IMAGE)
    (value,) = output_values(graph)
    assert continued(value, placeholders(graph)) == []
    assert {node.op for node in origins(value)} == {"call_function"}


def test_a_slice_continues_what_lies_under_it() -> None:
    graph = traced(lambda t, i: torch.cat([t, i], 1)[:, -3:], TEXT, IMAGE)
    (value,) = output_values(graph)
    assert continued(value, placeholders(graph)) == [placeholders(graph)[1]]


def test_without_a_path_the_only_value_of_the_type_is_the_pair() -> None:
    graph = traced(lambda t, i: i.sin(), torch.zeros(1, 2, 4), IMAGE)
    (value,) = output_values(graph)
    assert pair(value, placeholders(graph)) is placeholders(graph)[1]
    graph = traced(lambda t, i: i.sin(), TEXT, IMAGE)
    (value,) = output_values(graph)
    assert pair(value, placeholders(graph)) is None
