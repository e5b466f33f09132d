"""The runner: the host loop over one module, captured when a call asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.analysis.binding import timestep_path
from graphcache.errors import CaptureError
from graphcache.locking import compiling
from graphcache.lowering import choose_lowering
from graphcache.policy import configuration
from graphcache.program import TensorType
from graphcache.runtime.captures import Captures
from graphcache.runtime.compiling import CompiledLoop, Target, compile_loop
from graphcache.runtime.guard import is_guided, refuse_hooks
from graphcache.runtime.instances import bare
from graphcache.runtime.state import state_of
from graphcache.runtime.stepper import Stepper
from graphcache.runtime.streams import Stream
from graphcache.runtime.thresholds import Thresholds, thresholds_of
from graphcache.runtime.weights import weights_of
from graphcache.signature import Call, CallSignature


class Runner(Stepper):
    """Runs one module under one policy.

    Attributes:
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
        thresholds = Thresholds(thresholds_of(target.policies))
        signature = CallSignature(module.forward)
        super().__init__(signature, thresholds, scheduler, callback)
        self.module = module
        self.target = target
        self.config: object = None
        self._refuse_training()
        refuse_hooks(module, root=False)
        state, self._polls = state_of(module)
        self._captures = Captures(state)
        self._scale: float | None = None

    @property
    def loops(self) -> tuple[CompiledLoop, ...]:
        """What was compiled for the module as it is, the oldest first."""
        return tuple(self._captures)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CompiledLoop:
        """Capture and compile for one call, without running it."""
        return self.find(self.signature.bind(args, kwargs))

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

    def step(self, call: Call) -> Any:
        """One step, or the module as it is where a guider has hooked its parts."""
        self._refuse_training()
        self._refuse_gradients(call)
        if self._polls.changed():
            if is_guided(self.module):
                return self._run_uncompiled(call)
            self._look()
        return super().step(call)

    def refresh(self) -> None:
        """Look at the module as it is now, as at the first call of a generation.

        Raises:
            CaptureError: If it is in training mode, or hooked.
        """
        self._refuse_training()
        if self._polls.changed() or self._polls.retyped():
            self._look()

    def begin(self, stream: Stream) -> None:
        """Look at the types of all weights where a stream begins."""
        if stream.index == 0 and self._polls.retyped():
            self._look()

    def scale(self, call: Call) -> float:
        """By what the timestep argument is multiplied for the scheduler's units."""
        if self._scale is None:
            self._scale = self.find(call).scale
        return self._scale

    def find(self, call: Call) -> CompiledLoop:
        """The loop that is good for a call, compiled now if there is none."""
        loop = self._captures.find(call)
        return self._compile(call) if loop is None else loop

    def _compile(self, call: Call) -> CompiledLoop:
        with compiling():
            # Another thread may have compiled it while this one waited.
            loop = self._captures.find(call)
            if loop is None:
                self._refuse_foreign(call)
                loop = compile_loop(
                    bare(self.module), call, self.target, self.stats, self.context_name
                )
                state, self._polls = state_of(self.module)
                self._captures.add(call, loop, state)
        return loop

    def _look(self) -> None:
        """Find out in which state the module is, or refuse it."""
        with compiling():
            refuse_hooks(self.module, root=True)
            state, polls = state_of(self.module)
            self._captures.enter(state, weights_of(self.module))
            self._polls = polls
            self._scale = None

    def _run_uncompiled(self, call: Call) -> Any:
        """Call the module with the hooks on its parts; no stream hears of it."""
        self.stats.uncompiled += 1
        options = {} if call.return_dict is None else {"return_dict": call.return_dict}
        return bare(self.module)(**call.values, **options)

    def _forget_captures(self) -> None:
        self._captures.clear()
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
        for loop in self._captures:
            for path, tensor in tensors.items():
                seen = loop.arguments.get(path)
                if seen is not None and _is_foreign(tensor, seen, path == timestep):
                    raise CaptureError(
                        f"{path} is {tensor.dtype} on {tensor.device}, but was "
                        f"captured as {seen.dtype} on {seen.device}: move the input, "
                        "or move the module with .to() and it is captured again"
                    )


def _is_foreign(tensor: Tensor, seen: TensorType, is_timestep: bool) -> bool:
    if tensor.device != seen.device:
        return True
    floating = tensor.dtype.is_floating_point and seen.dtype.is_floating_point
    # Schedulers differ in the precision of their timesteps, and models cast it.
    return floating and tensor.dtype != seen.dtype and not is_timestep
