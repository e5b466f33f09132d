"""match-layouts: what a segment hands on lies in memory as its reader expects.

A compiled graph takes its inputs with the strides that it was compiled for. Under one
combination of decisions a value may come from a buffer and under another from an
operator, and be laid out otherwise; what is stored is then copied into the layout of
its buffer, and what is handed to a later segment is declared as it really is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from graphcache.passes.branches import same_layout
from graphcache.passes.manager import PassResult
from graphcache.program import (
    InputKind,
    Outputs,
    Program,
    Stage,
    fake_value,
    output_node,
    placeholders,
    set_outputs,
)

_empty = torch.ops.aten.new_empty_strided.default
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_copy = torch.ops.aten.copy.default


def propagated(program: Program) -> Outputs:
    """Fakes of a program's outputs, worked out from those of its inputs alone.

    Where sizes depend on data they cannot be worked out anew, and are those recorded.
    """
    if any(isinstance(fake_value(node), _SYMBOLS) for node in program.graph.nodes):
        return recorded(program.outputs)
    inputs = [fake_value(node) for node in placeholders(program.graph)]
    mode = next((v.fake_mode for v in inputs if hasattr(v, "fake_mode")), nullcontext())
    with torch.no_grad(), mode:
        values = list(fx.Interpreter(program.module).run(*inputs))
    parts = []
    for size in (program.results, len(program.stores), len(program.scores)):
        parts.append(tuple(values[:size]))
        values = values[size:]
    return Outputs(parts[0], parts[1], parts[2], tuple(values))


def recorded(outputs: Outputs) -> Outputs:
    """The fakes that the nodes of a graph's outputs carry."""
    groups = (outputs.results, outputs.stores, outputs.scores, outputs.lives)
    results, stores, scores, lives = (tuple(map(_fake, group)) for group in groups)
    return Outputs(results, stores, scores, lives)


def _fake(value: Any) -> Any:
    return fake_value(value) if isinstance(value, fx.Node) else value


def declare_lives(head: Program, segments: Iterable[Program]) -> None:
    """Give the inputs of later segments the layouts that the head really hands over."""
    found = dict(zip(head.lives, propagated(head).lives, strict=True))
    for program in segments:
        nodes = {node.name: node for node in placeholders(program.graph)}
        for entry in program.inputs_of(InputKind.LIVE):
            if entry.target in found:
                nodes[entry.name].meta["val"] = found[entry.target]


@dataclass(frozen=True)
class MatchLayouts:
    """Copy what is stored into the layout of its buffer, where that is another.

    Args:
        layouts: A fake of every buffer, by name.
    """

    layouts: Mapping[str, Any]
    name: ClassVar[str] = "match-layouts"
    before: ClassVar[tuple[Stage, ...]] = (Stage.LOWERED,)

    def run(self, program: Program) -> PassResult:
        """Apply the pass; one edit per copy."""
        fakes = propagated(program).stores
        odd = {
            name: index
            for index, name in enumerate(program.stores)
            if not same_layout(fakes[index], self.layouts[name])
        }
        if not odd:
            return PassResult(program, 0)
        edited = program.copy()
        outputs = edited.outputs
        stores = list(outputs.stores)
        with edited.graph.inserting_before(output_node(edited.graph)):
            for name, index in odd.items():
                stores[index] = _moved(edited.graph, stores[index], self.layouts[name])
        set_outputs(edited.graph, replace(outputs, stores=tuple(stores)))
        edited.module.recompile()
        return PassResult(edited, len(odd))


def _moved(graph: fx.Graph, value: fx.Node, layout: Tensor) -> fx.Node:
    shape, strides = list(layout.shape), list(layout.stride())
    place = graph.call_function(_empty, (value, shape, strides))
    place.meta["val"] = layout
    copied = graph.call_function(_copy, (place, value))
    copied.meta["val"] = layout
    return copied
