"""Rewriting: from a module and one call of it to the cached program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from graphcache.capture import Capture, capture
from graphcache.errors import PolicyError
from graphcache.passes.join_guidance import PREDICATE, join_guidance
from graphcache.passes.manager import run_passes
from graphcache.passes.pipeline import (
    clean_pipeline,
    rewrite_pipeline,
    specialize_pipeline,
)
from graphcache.policy.diffusers import Configuration
from graphcache.policy.fastercache import GuidanceConfig
from graphcache.policy.policy import Policy
from graphcache.policy.predictors.half import ConditionalHalf
from graphcache.policy.regions import Model
from graphcache.policy.threshold import Threshold
from graphcache.program import InputKind, Program
from graphcache.signature import Call, halved
from graphcache.spec import verify

_SEQUENTIAL = ("cond", "uncond")


def cached_program(
    module: nn.Module, call: Call, wanted: Configuration, context: str | None = None
) -> Capture:
    """Capture a module and put the cache into its graph.

    Args:
        module: A module in eval mode.
        call: The call to specialise on.
        wanted: The policies, and what is said of guidance.
        context: Name of the caller's context, if there is one.

    Raises:
        CaptureError: If the module cannot be captured.
        PolicyError: If the policies match nothing, or guidance has no halves to tell.
    """
    if wanted.guidance is None:
        captured = capture(module, call)
        program = run_passes(
            captured.program, rewrite_pipeline(wanted.policies), label="rewrite"
        )
        return replace(captured, program=program)
    return _guided(module, call, wanted.policies, wanted.guidance, context)


def policies_of(program: Program, wanted: Configuration) -> tuple[Policy, ...]:
    """What a program obeys, in predicate order; guidance is a policy of the model.

    Raises:
        PolicyError: If the program obeys something else.
    """
    by_name = {policy.name: policy for policy in wanted.policies}
    if wanted.guidance is not None:
        decision, predictor = wanted.guidance.decision, wanted.guidance.predictor
        by_name[PREDICATE] = Policy(PREDICATE, Model(), decision, predictor)
    missing = [name for name in program.predicates if name not in by_name]
    if missing:
        raise PolicyError(f"the config has no policy {', '.join(missing)}")
    return tuple(by_name[name] for name in program.predicates)


def _guided(
    module: nn.Module,
    call: Call,
    policies: tuple[Policy, ...],
    config: GuidanceConfig,
    context: str | None,
) -> Capture:
    _refuse(policies, context)
    batched = _batched_arguments(call, config)
    captured = capture(module, call)
    if not all(write.is_plain for write in captured.writes):
        raise PolicyError(
            "guidance is to be predicted, and the module writes tensors to "
            f"{', '.join(write.path for write in captured.writes)}, of which no half "
            "can be predicted: leave guidance out"
        )
    second = capture(module, halved(call, batched))
    full = _full(captured.program, policies)
    half = _half(second.program, policies)
    joined = join_guidance(full, half, config, batched)
    verify(joined)
    # What a half was read from follows from the whole.
    return replace(captured, program=joined, read=captured.read | second.read)


def refuse_halves_in_turn(context: str | None) -> None:
    """Refuse a caller's context that says that there are no halves in a batch.

    Raises:
        PolicyError: If it names one of them.
    """
    if context in _SEQUENTIAL:
        raise PolicyError(
            f"the unconditional half of a batch is to be predicted, and the context "
            f"{context!r} says that both halves are called in turn: leave guidance out"
        )


def _refuse(policies: Sequence[Policy], context: str | None) -> None:
    refuse_halves_in_turn(context)
    for policy in policies:
        if policy.name == PREDICATE:
            raise PolicyError(f"{PREDICATE!r} names the prediction of guidance")
        if isinstance(policy.decision, Threshold):
            raise PolicyError(
                f"policy {policy.name} decides from data, which cannot be combined "
                "with the prediction of guidance: the batch that it looks at changes"
            )


def _batched_arguments(call: Call, config: GuidanceConfig) -> frozenset[str]:
    """Paths of the arguments that hold both halves.

    Raises:
        PolicyError: If the latents' batch has no halves.
    """
    found = {
        path: tensor
        for path, tensor in zip(call.paths, call.tensors, strict=True)
        if path in config.arguments and tensor.ndim
    }
    batch = next(iter(found.values())).shape[0] if found else 1
    if batch % 2:
        raise PolicyError(
            f"guidance is to be predicted, and the batch of {batch} is not an "
            "unconditional half and a conditional one: leave guidance out for a model "
            "with distilled guidance, or one that is called for each half in turn"
        )
    return frozenset(p for p, tensor in found.items() if tensor.shape[0] == batch)


def _full(program: Program, policies: tuple[Policy, ...]) -> Program:
    """Everything computes, and what is kept is that of the conditional half."""
    clean = run_passes(program, clean_pipeline(), label="full clean")
    if not policies:
        return clean
    kept = tuple(replace(p, predictor=ConditionalHalf(p.predictor)) for p in policies)
    cached = run_passes(
        program, rewrite_pipeline(kept, dense=True), label="full rewrite"
    )
    signature = (True,) * len(cached.predicates)
    return run_passes(cached, specialize_pipeline(signature), label="full specialize")


def _half(program: Program, policies: tuple[Policy, ...]) -> Program:
    passes = rewrite_pipeline(policies, dense=True) if policies else clean_pipeline()
    return run_passes(_apart(program), passes, label="half rewrite")


def _apart(program: Program) -> Program:
    """Constants under names of their own: they may differ with the batch."""
    names = {name: f"half.{name}" for name in program.constants}
    inputs = tuple(
        replace(entry, target=names[entry.target])
        if entry.kind is InputKind.CONSTANT
        else entry
        for entry in program.inputs
    )
    constants: dict[str, Tensor] = {
        names[name]: value for name, value in program.constants.items()
    }
    return program.evolve(inputs=inputs, constants=constants)
