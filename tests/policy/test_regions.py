"""Region selectors."""

from __future__ import annotations

import pytest

from graphcache.analysis.view import Analysis
from graphcache.errors import PolicyError
from graphcache.policy import (
    AnyOf,
    Attention,
    EachBlock,
    FeedForward,
    LastOutput,
    Modules,
    Policy,
    never_reuse,
)
from graphcache.program import Region
from tests.models import tiny
from tests.programs import source
from tests.zoo import ZOO, first_inputs, make


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


def test_within_is_asked_besides_include() -> None:
    selector = Attention(include=("attn1",), within=("^blocks", "^layers"))
    assert selector.reject(region("blocks.0.attn1")) is None
    assert selector.reject(region("blocks.0.attn2")) == "path matches none of 'attn1'"
    refused = selector.reject(region("refiner.0.attn1"))
    assert refused == "path matches none of '^blocks', '^layers'"
    with pytest.raises(PolicyError, match="not a regular expression"):
        Attention(within=("(",))


def test_selectors_of_one_kind_refuse_others() -> None:
    attention, block = region(), region("blocks.0", kind="block")
    assert FeedForward().reject(attention) == "is attention, not feed-forward"
    assert EachBlock().reject(attention) == "is attention, not block"
    assert EachBlock().reject(block) is None


def test_any_of_takes_what_one_takes_in_graph_order() -> None:
    zoo = ZOO["cogvideox"]
    analysis = Analysis(source(make(zoo), first_inputs(zoo)))
    both = AnyOf((FeedForward(), Attention()))
    assert [found.name for found in both.candidates(analysis)] == [
        "transformer_blocks.0.attn1",
        "transformer_blocks.0.ff",
        "transformer_blocks.1.attn1",
        "transformer_blocks.1.ff",
    ]
    assert both.noun == "feed-forward or attention"
    assert both.reject(region()) is None
    assert both.reject(region("x", kind="feed-forward")) is None
    narrow = AnyOf((FeedForward(), Attention(("cross",))))
    wanted = "is attention, not feed-forward and is self-attention, wanted cross"
    assert narrow.reject(region()) == wanted
    with pytest.raises(PolicyError, match="at least one selector"):
        AnyOf(())


def test_modules_match_whole_paths_among_regions_and_other_calls() -> None:
    analysis = Analysis(source(tiny(depth=2)))
    selector = Modules((r"blocks\.0\.norm",))
    found = {r.name: selector.reject(r) for r in selector.candidates(analysis)}
    # What does not match is shown if it is a region: the list stays readable.
    assert found["blocks.0.norm"] is None
    assert found["blocks.0.attn1"] == r"path is none of 'blocks\\.0\\.norm'"
    assert "blocks.1.norm" not in found
    assert "blocks.0.attn1.to_q" not in found


def test_the_last_output_is_the_last_projection_or_the_model() -> None:
    (model,) = LastOutput().candidates(Analysis(source(tiny())))
    assert model.kind == "model"
    zoo = ZOO["flux"]
    program = source(make(zoo), first_inputs(zoo))
    (projection,) = LastOutput().candidates(Analysis(program))
    assert projection.path == "proj_out"
    assert LastOutput().reject(projection) is None
