"""What `explain` says, and that its figures are counted."""

from __future__ import annotations

import pytest
from expecttest import assert_expected_inline

import graphcache
from graphcache import PolicyError, pyramid_attention_broadcast
from graphcache.explanation import count_flops
from tests.models import tiny, tiny_inputs
from tests.programs import lowered

PAB = pyramid_attention_broadcast(spatial=2)


def test_report() -> None:
    both = pyramid_attention_broadcast(spatial=2, cross=2)
    found = graphcache.explain(tiny(depth=1, cross=True), both, **tiny_inputs())
    assert_expected_inline(
        str(found),
        """\
spatial: blocks.0.attn1 (self) holds &blocks.0.attn1.0: f32[2, 3, 8]
cross: blocks.0.attn2 (cross) holds &blocks.0.attn2.0: f32[2, 3, 8]
buffers: 384 bytes a stream
weights: 2720 bytes (2720 f32)
spatial: Interval(every=2, window=(100, 800)), HoldOutput()
cross: Interval(every=2, window=(100, 800)), HoldOutput()
lowering specialize: every decision is known before the step: no branch and no host read
graph spatial=compute cross=compute: 65 nodes, 0.0 MFLOP (100%)
graph spatial=reuse cross=reuse: 13 nodes, 0.0 MFLOP (9%)""",
    )


def test_what_no_policy_takes_is_listed() -> None:
    found = graphcache.explain(tiny(depth=1, cross=True), PAB, **tiny_inputs())
    assert "not cached: blocks.0.attn2 (cross)" in str(found)


def test_flops_are_those_of_the_products() -> None:
    tokens, width = 2 * 3, 8
    feed_forward = 2 * tokens * width * width
    assert count_flops(lowered(tiny(depth=1), (False,), PAB)) == feed_forward
    projections = 4 * feed_forward
    attention = 2 * (2 * 2 * 3 * 3 * width)
    time = 2 * 2 * 1 * width
    whole = feed_forward + projections + attention + time
    assert count_flops(lowered(tiny(depth=1), (True,), PAB)) == whole


def test_a_policy_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(PolicyError, match="matches none"):
        graphcache.explain(
            tiny(), pyramid_attention_broadcast(cross=2), **tiny_inputs()
        )
