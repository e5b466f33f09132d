"""drop-stores."""

from __future__ import annotations

from graphcache import never_reuse, pyramid_attention_broadcast
from graphcache.lowering import lower
from graphcache.passes.drop_stores import DropStores
from graphcache.policy import configuration
from tests.models import tiny
from tests.programs import cached, lowered

PAB = pyramid_attention_broadcast(spatial=2)


def test_unread_buffers_are_not_returned() -> None:
    program = lowered(tiny(), (True,), PAB)
    result = DropStores(frozenset({"blocks.0.attn1.0"})).run(program)
    assert result.edits == 1
    assert result.program.stores == ("blocks.0.attn1.0",)
    assert [buffer.name for buffer in result.program.buffers] == ["blocks.0.attn1.0"]


def test_read_buffers_stay() -> None:
    program = lowered(tiny(), (True,), PAB)
    assert DropStores(frozenset(program.stores)).run(program).edits == 0


def test_is_idempotent() -> None:
    once = DropStores(frozenset()).run(lowered(tiny(), (True,), PAB))
    assert once.edits == 2
    assert DropStores(frozenset()).run(once.program).edits == 0


def test_never_reuse_stores_nothing() -> None:
    policies = configuration(never_reuse()).policies
    (program,) = lower(cached(tiny(), never_reuse()), policies).routes.values()
    assert program.stores == ()
    assert program.buffers == ()
