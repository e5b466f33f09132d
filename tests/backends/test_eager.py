"""The eager backend agrees with the reference, bit for bit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

import graphcache
from graphcache import Attention, Interval, Policy
from tests.models import run_loop, same, tiny

windows = st.none() | st.sampled_from([(100.0, 800.0), (-1.0, 500.0), (400.0, 2000.0)])


@settings(max_examples=6, deadline=None)
@given(
    self_every=st.integers(1, 4),
    cross_every=st.integers(1, 4),
    window=windows,
    depth=st.integers(1, 3),
    steps=st.integers(1, 9),
)
def test_equals_the_reference_under_any_policy(
    self_every: int,
    cross_every: int,
    window: tuple[float, float] | None,
    depth: int,
    steps: int,
) -> None:
    policies = [
        Policy("own", Attention(("self",)), Interval(self_every, window)),
        Policy("cross", Attention(("cross",)), Interval(cross_every)),
    ]
    module = tiny(depth=depth, cross=True)
    runs = [
        run_loop(graphcache.compile(module, policies, backend=backend), steps)
        for backend in ("eager", "reference")
    ]
    assert same(*runs)


def test_a_held_output_is_what_the_module_itself_would_hold() -> None:
    """An oracle without graphs: the module with its attention replaced by hand."""
    module = tiny(depth=1)
    decision = Interval(3)
    policy = Policy("p", Attention(), decision)
    cached = run_loop(graphcache.compile(module, policy, backend="eager"), 7)

    plain = tiny(depth=1)
    compute, held, calls = plain.blocks[0].attn1.forward, [], []

    def attention(*args: object) -> object:
        if len(calls) % 3 == 0:
            held[:] = [compute(*args)]
        calls.append(None)
        return held[0]

    plain.blocks[0].attn1.forward = attention
    assert same(run_loop(plain, 7), cached)
