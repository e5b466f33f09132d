"""drop-noops: remove nodes that compute nothing.

Evaluation-mode dropout leaves a `clone`, tracing leaves assertions on dtypes that the
call signature already fixes. Both hide structure from later passes and cost time in
eager execution. Bitwise: a clone goes only if its strides are those of its operand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from graphcache.passes.manager import PassResult
from graphcache.program import Program, Stage, fake_value, output_values

_aten = torch.ops.aten
_ASSERTIONS = (_aten._assert_tensor_metadata.default,)
_COPIES = (_aten.clone.default, _aten.alias.default, _aten.lift_fresh_copy.default)


def is_assertion(node: fx.Node) -> bool:
    """Whether the node only checks metadata that the call key fixes."""
    return node.target in _ASSERTIONS


def is_noop_copy(node: fx.Node) -> bool:
    """Whether the node copies a tensor to the same type and layout."""
    if node.target not in _COPIES:
        return False
    source = fake_value(node.args[0])  # type: ignore[arg-type]
    value = fake_value(node)
    assert isinstance(source, Tensor)
    assert isinstance(value, Tensor)
    return (
        source.stride() == value.stride()
        and source.storage_offset() == value.storage_offset()
    )


@dataclass(frozen=True)
class DropNoops:
    """Remove metadata assertions and copies that change neither value nor layout."""

    name: ClassVar[str] = "drop-noops"
    before: ClassVar[tuple[Stage, ...]] = (Stage.SOURCE,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass."""
        returned = set(output_values(program.graph))
        names = [
            node.name
            for node in program.graph.nodes
            # A copy that is returned keeps the caller's tensor apart from ours.
            if is_assertion(node) or (is_noop_copy(node) and node not in returned)
        ]
        if not names:
            return PassResult(program, 0)
        edited = program.copy()
        by_name = {node.name: node for node in edited.graph.nodes}
        for name in names:
            node = by_name[name]
            if node.users:
                source = node.args[0]
                assert isinstance(source, fx.Node)
                node.replace_all_uses_with(source)
            edited.graph.erase_node(node)
        return PassResult(edited, len(names))
