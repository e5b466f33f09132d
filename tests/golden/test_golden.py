"""The saving is in the graph: the printed variants of a two-block CogVideoX.

Set EXPECTTEST_ACCEPT=1 to write the files anew, and read the difference before
committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from packaging.version import Version

import graphcache
from graphcache import pyramid_attention_broadcast
from graphcache.program import Program
from tests.zoo import ZOO, first_inputs, make

HERE = Path(__file__).parent
PAB = pyramid_attention_broadcast(spatial=2)
# Node names follow the exporter's; the goldens are those of the newest supported one.
exporter = pytest.mark.skipif(
    Version(torch.__version__).release[:2] != (2, 13),
    reason="goldens are of torch 2.13's exporter",
)


@pytest.fixture(scope="module")
def program() -> Program:
    tiny = ZOO["cogvideox"]
    return graphcache.trace(make(tiny), PAB, **first_inputs(tiny), return_dict=False)


def check(name: str, program: Program) -> None:
    path = HERE / f"{name}.txt"
    text = f"{program}\n"
    if os.environ.get("EXPECTTEST_ACCEPT"):
        path.write_text(text)
    assert path.read_text() == text


@exporter
def test_cached(program: Program) -> None:
    check("cogvideox_cached", program)


@exporter
def test_variants(program: Program) -> None:
    compute, reuse = graphcache.variants(program, PAB)
    check("cogvideox_compute", compute)
    check("cogvideox_reuse", reuse)


def test_reuse_holds_nothing_of_the_attention(program: Program) -> None:
    _, reuse = graphcache.variants(program, PAB)
    text = str(reuse)
    assert "scaled_dot_product_attention" not in text
    weights = {entry.target for entry in reuse.inputs}
    assert not any(".attn1." in name and "weight" in name for name in weights)
    # The norm that only fed attention is gone; its modulation still scales the output.
    assert not any(".norm1.norm." in name for name in weights)
    assert "transformer_blocks.0.norm1.linear.weight" in weights
    # One norm per stream and block for the feed-forward, and two at the end.
    assert text.count("layer_norm(") == 2 * 2 + 2
    assert text.count("linear(") == 2 + 1 + 2 * 4 + 2
