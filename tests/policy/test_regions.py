"""Region selectors."""

from __future__ import annotations

import pytest

from graphcache import Attention, Policy, PolicyError, never_reuse
from graphcache.program import Region


def region(
    path: str = "blocks.0.attn",
    flow: str = "self",
    kind: str = "attention",
    declares_cross: bool = False,
) -> Region:
    return Region(path, path, kind, flow, declares_cross, "Attn", (), (), ())


def test_selects_by_flow_and_path_and_says_why_not() -> None:
    selector = Attention(("self",), include=("blocks",), exclude=("refiner",))
    assert selector.reject(region()) is None
    assert selector.reject(region(flow="cross")) == "is cross-attention, wanted self"
    assert selector.reject(region("layers.0")) == "path matches none of 'blocks'"
    refused = selector.reject(region("refiner_blocks.0"))
    assert refused == "path matches the excluded 'refiner'"
    assert selector.reject(region(kind="block")) == "is block, not attention"


def test_is_cross_overrides_the_dataflow() -> None:
    selector = Attention(("self",), is_cross=lambda found: found.declares_cross)
    assert selector.reject(region(flow="cross")) is None
    assert selector.reject(region(declares_cross=True)) is not None


def test_unknown_flow_and_bad_expression_are_refused() -> None:
    with pytest.raises(PolicyError, match="unknown attention flow"):
        Attention(("sideways",))
    with pytest.raises(PolicyError, match="not a regular expression"):
        Attention(include=("(",))


def test_policy_names_are_identifiers() -> None:
    with pytest.raises(PolicyError, match="not an identifier"):
        Policy("not a name", Attention(), never_reuse().decision)
