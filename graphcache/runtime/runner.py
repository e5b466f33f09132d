"""The host loop: resolve stream and step, pick the variant, bind, call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.analysis.binding import TIMESTEP_ARGUMENTS, timestep_path
from graphcache.analysis.timestep import timestep_scale
from graphcache.errors import CaptureError
from graphcache.lowering import choose_lowering
from graphcache.policy import configuration
from graphcache.policy.decisions import Step
from graphcache.program import TensorType
from graphcache.runtime.clock import Clock
from graphcache.runtime.guard import StructureWatch, fingerprint, refuse_hooks
from graphcache.runtime.instances import bare
from graphcache.runtime.loop import Loop, Target, compile_loop
from graphcache.runtime.loops import Loops
from graphcache.runtime.segment import Frame, run_route
from graphcache.runtime.stats import Statistics, StepRecord
from graphcache.runtime.streams import Stream
from graphcache.runtime.thresholds import Thresholds
from graphcache.signature import Call, CallSignature

# What a disabled cache is told of every step: nothing that is asked of it counts.
_ANYWHERE = Step(0, timestep=0.0, position=0, count=1, sigma=0.0)


class Runner:
    """Runs one module under one policy.

    Attributes:
        enabled: Whether anything is ever reused.
        thresholds: Of the policies whose decisions are dynamic; read at every step.
        config: What the policy was changed to, if it was.

    Args:
        module: The original module, in eval mode.
        target: What to compile for.
        scheduler: Attached scheduler, or None.
        callback: The config's timestep callback, or None.

    Raises:
        CaptureError: If the module is in training mode, hooked, or takes arguments
            that cannot be bound.
        PolicyError: If the scheduler has no timesteps.
    """

    def __init__(
        self,
        module: nn.Module,
        target: Target,
        scheduler: Any = None,
        callback: Callable[[], Any] | None = None,
    ) -> None:
        self.module = module
        self.target = target
        self.stats = Statistics()
        self.clock = Clock(self.stats, scheduler, callback)
        self.enabled = True
        self.thresholds = Thresholds(target.policies)
        self.config: object = None
        self.signature = CallSignature(module.forward)
        self._refuse_training()
        refuse_hooks(module, root=False)
        self._inspect()
        self._loops = Loops()
        self._scale: float | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of the module."""
        try:
            return self._step(self.signature.bind(args, kwargs))
        except BaseException:
            # Whatever was interrupted, no later call may read what it left behind.
            self.reset()
            raise

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loop:
        """Capture and compile for one call, without running it."""
        return self._loop(self.signature.bind(args, kwargs))

    def reset(self) -> None:
        """Reset every stream: the next call of each computes."""
        self.clock.reset()

    def disable(self) -> None:
        """Compute everything from now on."""
        self.enabled = False
        self.reset()

    def enable(self, config: object = None) -> None:
        """Reuse again, by the same policy or by another one.

        Args:
            config: As for `graphcache.compile`; None for the same.

        Raises:
            PolicyError: If `config` is unknown or malformed.
            BackendError: If the lowering cannot lower it.
        """
        if config is not None:
            self._change_policy(config)
        self.enabled = True
        self.reset()

    def _change_policy(self, config: object) -> None:
        wanted = configuration(config)
        choose_lowering(self.target.lowering, wanted.policies)
        self.config = config
        self.target = replace(self.target, wanted=wanted)
        self.clock.callback = wanted.timestep_callback
        self.thresholds.adopt(wanted.policies)
        self._forget_captures()

    def _step(self, call: Call) -> Any:
        self._refuse_training()
        self._refuse_gradients(call)
        _refuse_autocast(call)
        if self._watch.changed():
            self._restructure()
        stream = self.clock.tick(
            self._timestep(call), lambda: self._units(call), strict=self.enabled
        )
        if stream.index == 0 and fingerprint(self.module) != self._fingerprint:
            self._restructure()
        loop = self._loop(call)
        stream.adopt(loop)
        output = self._unflatten(call, loop, self._run(call, loop, stream))
        for write in loop.writes:
            write.apply(call.values)
        return output

    def _run(self, call: Call, loop: Loop, stream: Stream) -> list[Tensor]:
        step = stream.step if self.enabled else _ANYWHERE
        if self.enabled and not step.index:
            loop.check(step, self._context_name())
        flags = loop.flags(step, compute_all=not self.enabled)
        scores = self._decide_early(call, loop, stream, flags)
        frame = Frame(call.tensors, stream, step, flags, self.thresholds, loop.device)
        results = run_route(loop.route(flags), frame)
        if not self.enabled:
            stream.buffers.clear()
        computed = loop.computed({**flags, **frame.decisions})
        record = StepRecord(
            stream.name,
            stream.index,
            stream.timestep,
            {name: count > 0 for name, count in computed.items()},
            {**scores, **frame.scores},
        )
        self.stats.host_reads += len(frame.scores)
        self.stats.record(record, loop.regions, computed)
        stream.index += 1
        return results

    def _decide_early(
        self, call: Call, loop: Loop, stream: Stream, flags: dict[str, bool]
    ) -> dict[str, float]:
        """Take the decisions that the timestep determines; returns their scores."""
        if not self.enabled:
            flags.update(dict.fromkeys(loop.hoisted, True))
            return {}
        scores = {}
        for name, hoisted in loop.hoisted.items():
            computes, score, reads = hoisted.decide(
                call,
                stream,
                self.thresholds,
                lambda: self.clock.ahead(stream),
                self.clock.read,
            )
            self.stats.host_reads += reads
            flags[name] = computes
            if score is not None:
                scores[name] = score
        return scores

    def _loop(self, call: Call) -> Loop:
        loop = self._loops.find(call)
        if loop is None:
            self._refuse_foreign(call)
            loop = compile_loop(
                bare(self.module), call, self.target, self.stats, self._context_name()
            )
            self._loops.add(call, loop)
            # What the module keeps from a first call is no change of it.
            self._inspect()
        return loop

    def _context_name(self) -> str | None:
        context = self.clock.context
        return None if context is None else context.name

    def _unflatten(self, call: Call, loop: Loop, results: list[Tensor]) -> Any:
        tree = loop.named if call.return_dict else loop.output
        return tree.fill(results)

    def _timestep(self, call: Call) -> Tensor | None:
        for name in TIMESTEP_ARGUMENTS:
            value = call.values.get(name)
            if isinstance(value, (int, float)):
                raise CaptureError(
                    f"{name}={value!r} is a plain number, which would be compiled into "
                    f"the graph: pass a tensor, torch.tensor([{value!r}])"
                )
        tensors = dict(zip(call.paths, call.tensors, strict=True))
        path = timestep_path(tensors)
        return None if path is None else tensors[path]

    def _units(self, call: Call) -> float:
        if self._scale is None:
            self._scale = timestep_scale(self._loop(call).program)
        return self._scale

    def _inspect(self) -> None:
        self._fingerprint = fingerprint(self.module)
        self._watch = StructureWatch(self.module)

    def _restructure(self) -> None:
        """The module changed: forget what was captured of it, or refuse."""
        refuse_hooks(self.module, root=True)
        self._forget_captures()
        self._inspect()

    def _forget_captures(self) -> None:
        self._loops.clear()
        self._scale = None

    def _refuse_training(self) -> None:
        if self.module.training:
            raise CaptureError(
                f"{type(self.module).__name__} is in training mode, and caching is for "
                "inference: call .eval() first"
            )

    def _refuse_gradients(self, call: Call) -> None:
        if not torch.is_grad_enabled():
            return
        weights = self.module.parameters()
        if any(tensor.requires_grad for tensor in (*weights, *call.tensors)):
            raise CaptureError(
                "gradients are required at this call, and a cached step has none: "
                "call inside torch.no_grad() (diffusers' pipelines do), or "
                "requires_grad_(False) on the module and its inputs"
            )

    def _refuse_foreign(self, call: Call) -> None:
        """Refuse an input on another device, or of another precision, than captured."""
        tensors = dict(zip(call.paths, call.tensors, strict=True))
        timestep = timestep_path(tensors)
        for loop in self._loops:
            for path, tensor in tensors.items():
                seen = loop.arguments.get(path)
                if seen is not None and _is_foreign(tensor, seen, path == timestep):
                    raise CaptureError(
                        f"{path} is {tensor.dtype} on {tensor.device}, but was "
                        f"captured as {seen.dtype} on {seen.device}: move the input, "
                        "or move the module with .to() and it is captured again"
                    )


def _refuse_autocast(call: Call) -> None:
    for kind in {tensor.device.type for tensor in call.tensors}:
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            raise CaptureError(
                f"autocast is on for {kind}, and a graph has one precision: convert "
                "the module and its inputs with .to(dtype) instead"
            )


def _is_foreign(tensor: Tensor, seen: TensorType, is_timestep: bool) -> bool:
    if tensor.device != seen.device:
        return True
    floating = tensor.dtype.is_floating_point and seen.dtype.is_floating_point
    # Schedulers differ in the precision of their timesteps, and models cast it.
    return floating and tensor.dtype != seen.dtype and not is_timestep
