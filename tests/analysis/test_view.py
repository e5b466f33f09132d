"""Blocks, runs and feed-forward on the zoo: found by dataflow, not by name."""

from __future__ import annotations

import pytest

from graphcache.analysis.residual import pair
from graphcache.analysis.view import Analysis
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import clean_pipeline
from tests.models import tiny
from tests.programs import source
from tests.zoo import ZOO, first_inputs, make

CHAINS = {
    "cogvideox": ["transformer_blocks.0", "transformer_blocks.1"],
    "latte": [
        "transformer_blocks.0",
        "temporal_transformer_blocks.0",
        "transformer_blocks.1",
        "temporal_transformer_blocks.1",
    ],
    "flux": [
        "transformer_blocks.0",
        "transformer_blocks.1",
        "single_transformer_blocks.0",
        "single_transformer_blocks.1",
    ],
    # The refiner works on the prompt, the VACE blocks on the side.
    "hunyuan_video": [
        "transformer_blocks.0",
        "transformer_blocks.1",
        "single_transformer_blocks.0",
    ],
    "wan_vace": ["blocks.0", "blocks.1", "blocks.2"],
}


def analysis(name: str) -> Analysis:
    model = ZOO[name]
    program = source(make(model), first_inputs(model))
    return Analysis(run_passes(program, clean_pipeline()))


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_is_what_carries_the_latents_in_order_of_execution(name: str) -> None:
    found = analysis(name)
    assert [block.scope.path for block in found.chain] == CHAINS[name]
    hidden = [found.is_hidden(value) for value in found.entries]
    assert hidden.count(True) == 1


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("head", [0, 1])
def test_what_leaves_a_run_continues_a_stream_that_enters_it(
    name: str, head: int
) -> None:
    run = analysis(name).run(head, 0)
    assert all(pair(result, run.starts) is not None for result in run.results)


def test_a_sequence_that_is_cut_after_the_run_leaves_it_in_pieces() -> None:
    # Flux 2 joins text and image in its single blocks and cuts the image out at last.
    run = analysis("flux2").run(1, 0)
    (result,) = run.results
    assert pair(result, run.starts) is not None


def test_hints_between_blocks_lie_inside_the_run() -> None:
    run = analysis("flux_controlnet").run(0, 0)
    read = {operand.name for node in run.nodes for operand in node.all_input_nodes}
    assert any("controlnet" in name for name in read)


def test_feed_forward_and_blocks_are_regions_beside_attention() -> None:
    found = Analysis(source(tiny(depth=1, cross=True)))
    # The feed-forward of this model is one product in the block itself: no region.
    assert [(r.name, r.kind) for r in found.regions] == [
        ("blocks.0", "block"),
        ("blocks.0.attn1", "attention"),
        ("blocks.0.attn2", "attention"),
    ]
    kinds = [(r.path, r.kind) for r in analysis("flux").regions]
    assert ("transformer_blocks.0.ff", "feed-forward") in kinds
    assert ("transformer_blocks.0.ff_context", "feed-forward") in kinds


def test_a_module_that_is_called_twice_has_two_regions() -> None:
    names = [region.name for region in analysis("cogview4").regions]
    assert "transformer_blocks.0.ff" in names
    assert "transformer_blocks.0.ff@1" in names
