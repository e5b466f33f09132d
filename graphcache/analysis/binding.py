"""Binding times: how often a value can change.

Every node is one of ``constant < generation < timestep < step`` by the latest of what
it depends on: weights; what the prompt alone decides; the timestep; the latents.
"""

from __future__ import annotations

import enum
import re

from torch import fx

from graphcache.program import Input, InputKind, Program

TIMESTEP_ARGUMENTS = ("timestep", "timesteps", "t")
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


def time_of_input(entry: Input) -> Time:
    """When an input of a program is bound; what is not known may change every step."""
    if entry.kind in (InputKind.WEIGHT, InputKind.CONSTANT):
        return Time.CONSTANT
    if entry.kind is not InputKind.ARGUMENT:
        return Time.STEP
    name = entry.target.partition(".")[0]
    if name in (*TIMESTEP_ARGUMENTS, "guidance"):
        return Time.TIMESTEP
    return Time.GENERATION if _PROMPT.match(name) else Time.STEP


def binding_times(program: Program) -> dict[fx.Node, Time]:
    """The binding time of every node."""
    inputs = {entry.name: time_of_input(entry) for entry in program.inputs}
    times: dict[fx.Node, Time] = {}
    for node in program.graph.nodes:
        own = inputs.get(node.name, Time.CONSTANT)
        times[node] = max((times[item] for item in node.all_input_nodes), default=own)
    return times
