"""Binding times: how often a value can change.

Every node is one of ``constant < generation < timestep < step`` by the latest of what
it depends on: weights; what the prompt alone decides; the timestep; the latents.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx

from graphcache.program import Input, InputKind, Program, fake_value, placeholders

TIMESTEP_ARGUMENTS = ("timestep", "timesteps", "t")
"""What the timestep is called; else it is the first short argument named after time."""
_LATENTS = re.compile(r"(^|_)(hidden_states|latents?|sample)$")
_PROMPT = re.compile(
    r"^(encoder_|pooled_|text_|prompt_|img_ids|txt_ids|image_rotary|rotary|ofs|"
    r"added_cond|class_labels|attention_mask|caption|y$)"
)


class Time(enum.IntEnum):
    """When a value is bound."""

    CONSTANT = 0
    GENERATION = 1
    TIMESTEP = 2
    STEP = 3


def timestep_path(tensors: Mapping[str, Tensor]) -> str | None:
    """Which of a call's tensors is the timestep.

    Args:
        tensors: The tensor arguments by path, in order.
    """
    exact = (name for name in TIMESTEP_ARGUMENTS if name in tensors)
    named = (path for path, tensor in tensors.items() if _is_time(path, tensor))
    return next(exact, None) or next(named, None)


def _is_time(path: str, tensor: Tensor) -> bool:
    short = tensor.ndim <= 1 and tensor.dtype != torch.bool
    return short and "time" in _name(path)


def _name(path: str) -> str:
    return path.partition(".")[0]


def latents_path(paths: Collection[str]) -> str | None:
    """Which of a call's tensors is denoised: the first, or the first hidden states."""
    named = [path for path in paths if path.startswith("hidden_states")]
    return next(iter((*named, *paths)), None)


def changing(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Paths of the tensors that another step of the same loop changes.

    They are the latents, of every stream that has some, and the times.
    """
    latents = _name(latents_path(tensors) or "")
    return frozenset(
        path
        for path, tensor in tensors.items()
        if _name(path) in (latents, *TIMESTEP_ARGUMENTS)
        or _is_time(path, tensor)
        or (_LATENTS.search(_name(path)) and not _PROMPT.match(_name(path)))
    )


def time_of_input(entry: Input, timestep: str | None) -> Time:
    """When an input of a program is bound; what is not known may change every step.

    Args:
        entry: The input.
        timestep: Path of the timestep argument.
    """
    if entry.kind in (InputKind.WEIGHT, InputKind.CONSTANT):
        return Time.CONSTANT
    if entry.kind is not InputKind.ARGUMENT:
        return Time.STEP
    if entry.target == timestep or _name(entry.target) == "guidance":
        return Time.TIMESTEP
    return Time.GENERATION if _PROMPT.match(_name(entry.target)) else Time.STEP


def timestep_input(program: Program) -> str | None:
    """Path of the program's timestep argument."""
    values = {node.name: fake_value(node) for node in placeholders(program.graph)}
    arguments = program.inputs_of(InputKind.ARGUMENT)
    return timestep_path({entry.target: values[entry.name] for entry in arguments})


def binding_times(program: Program) -> dict[fx.Node, Time]:
    """The binding time of every node."""
    timestep = timestep_input(program)
    inputs = {entry.name: time_of_input(entry, timestep) for entry in program.inputs}
    times: dict[fx.Node, Time] = {}
    for node in program.graph.nodes:
        own = inputs.get(node.name, Time.CONSTANT)
        times[node] = max((times[item] for item in node.all_input_nodes), default=own)
    return times
