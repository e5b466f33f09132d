"""Halves: whether a batch is an unconditional and a conditional half.

With guidance in one batch both halves denoise the same latents, so that they are equal
at every step. Two prompts in one batch have latents of their own; one must not be
predicted from the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from graphcache.analysis.binding import latents_path
from graphcache.errors import PolicyError
from graphcache.passes.join_guidance import PREDICATE as GUIDANCE
from graphcache.policy.decisions import Step
from graphcache.runtime.stats import Statistics
from graphcache.runtime.streams import Stream
from graphcache.signature import Call


def check_halves(
    call: Call, stream: Stream, step: Step, flags: Mapping[str, bool], stats: Statistics
) -> None:
    """Refuse to predict one prompt of a batch from the other.

    The latents of both halves are compared twice in a generation: at its first step,
    and at the first that is predicted, where two prompts that began with the same noise
    have moved apart. Each is one read of the device.

    Args:
        call: The call.
        stream: Its stream.
        step: Where it is.
        flags: The decisions of the step.
        stats: Where reads are counted.

    Raises:
        PolicyError: If the halves are given different latents.
    """
    if GUIDANCE not in flags:
        return
    wanted = 0 if step.fresh else 1
    if (flags[GUIDANCE] and not step.fresh) or stream.compared > wanted:
        return
    stream.compared = wanted + 1
    path = latents_path(call.paths)
    if path is None:
        return
    latents = call.tensors[call.paths.index(path)]
    stats.count(device_reads=latents.device.type != "cpu")
    if torch.equal(*latents.chunk(2)):
        return
    raise PolicyError(
        "the unconditional half of the batch is to be predicted, and the two halves "
        f"of {path} differ: they are prompts of their own, not guidance. Leave it "
        "out (FasterCacheConfig(is_guidance_distilled=True), or fastercache() without "
        "guidance=), or call once for every prompt"
    )
