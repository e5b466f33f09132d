"""The timestep argument and its units."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphcache.analysis.binding import timestep_input
from graphcache.ops import gate_parts, is_gate
from graphcache.program import InputKind, Program, placeholders

_CASTS = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
_SLICE = torch.ops.aten.slice.Tensor


def timestep_scale(program: Program) -> float:
    """By what the timestep argument is multiplied to be in the scheduler's units.

    Flow-matching transformers such as Flux take ``timestep / 1000`` and multiply by
    1000 before anything else; the factor is read off the graph. 1 where there is none.
    """
    nodes = {node.name: node for node in placeholders(program.graph)}
    timestep = timestep_input(program)
    for entry in program.inputs_of(InputKind.ARGUMENT):
        if entry.target == timestep:
            return _first_factor(nodes[entry.name])
    return 1.0


def _first_factor(node: fx.Node) -> float:
    for user in node.users:
        if is_gate(user):
            return _factor_inside(user, node)
        if user.target in (*_CASTS, _SLICE):
            return _first_factor(user)
        if user.target is torch.ops.aten.mul.Tensor:
            factor: Any = user.args[1]
            if isinstance(factor, (int, float)) and factor >= 100:
                return float(factor)
    return 1.0


def _factor_inside(gate: fx.Node, node: fx.Node) -> float:
    """The factor in the branches of a gate that the timestep is an operand of."""
    parts = gate_parts(gate)
    if node not in parts.operands:
        return 1.0
    index = parts.operands.index(node)
    found = (_first_factor(placeholders(s.graph)[index]) for s in parts.branches)
    return next((factor for factor in found if factor != 1.0), 1.0)
