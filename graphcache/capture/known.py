"""Known values: what the host may read while a forward is traced.

A trace has no values, and some forwards ask for one: how long is the longest prompt, is
the picture empty, which tokens does the mask keep. An answer may be compiled in if it
depends on nothing that changes from step to step, and if every later call for which the
answer could be another one is captured anew.

`KnownValues` runs a part of the forward twice at once. Besides its traced value, each
tensor that is worked out from arguments (the latents and the timestep aside), constants
and sizes alone has a real one, together with the arguments that it came from. Reads are
answered from it, and those arguments are noted: the capture is good for their values
alone. A read of anything else, of the latents, the timestep or a weight, is refused.

What is known is never guessed. A real value is made by the function that makes the
traced one, out of known operands only. It holds as long as both have been written to
equally often, which torch counts for all views of a tensor together, so that a write
of something unknown through any of them ends it. Sources are kept by storage, for the
same reason.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from graphcache.capture import functions
from graphcache.capture.eager import version
from graphcache.capture.functions import tensors_in
from graphcache.capture.modes import lifted, untraced

_LEAVES = (
    *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
# What `flex_attention` enters to have itself traced by Dynamo.
_COMPILING = "setup_compilation_env"
_WEIGHTS = frozenset(("the weights",))
_WRITTEN = frozenset(("what was written to it",))


class HostRead(Exception):
    """The host asks for a value that changes from step to step."""


@dataclass
class _Sources:
    """Where the values of one storage come from.

    Attributes:
        storage: Kept so that no other storage takes its identity.
        paths: Paths of arguments.
    """

    storage: StorageWeakRef
    paths: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Real:
    """The real value of a traced tensor.

    Attributes:
        value: The value.
        ahead: How much more often the traced tensor has been written to.
    """

    value: Tensor
    ahead: int


@dataclass(frozen=True)
class _Call:
    """A call with real operands, and what they come from."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: frozenset[str]

    def run(self) -> Any:
        """The real result."""
        with untraced():
            return self.func(*self.args, **self.kwargs)

    def attempt(self) -> Any:
        """The real result; None if the call fails, as its trace then does."""
        try:
            return self.run()
        except Exception:
            return None


class KnownValues(TorchFunctionMode):
    """Answers the host's reads of known values while a forward is traced.

    Attributes:
        read: Paths of the arguments that answers came from.
        left: Whether a shape was left to the graph that could have been compiled in.

    Args:
        known: By path, the traced tensor and the real value of each argument that does
            not change from step to step.
        others: The traced tensors of the other arguments, by path.
        shapes: Whether to compile in what the shape of a tensor depends on, such as a
            mask that it is chosen by.
    """

    def __init__(
        self,
        known: Mapping[str, tuple[Tensor, Tensor]],
        others: Mapping[str, Tensor],
        *,
        shapes: bool,
    ) -> None:
        super().__init__()
        self.read: set[str] = set()
        self.left = False
        self._shapes = shapes
        self._reals: Any = WeakTensorKeyDictionary()
        self._origins: Any = WeakTensorKeyDictionary()
        self._sources: dict[int, _Sources] = {}
        for path, (traced, value) in known.items():
            # The forward's writes to an argument must not reach the caller's.
            self._know(traced, _cloned(value), {path})
        self._changing = frozenset(others)
        for path, traced in others.items():
            self._origins[traced] = frozenset((path,))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """One call of a torch function by the forward."""
        kwargs = dict(kwargs or {})
        func, args = functions.traceable(func, args)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            # Inside vmap, a tensor stands for many.
            return func(*args, **kwargs)
        if func in functions.READS:
            return self._answer(func, args, kwargs)
        if func is Tensor.__iter__:
            with self:
                return iter(args[0].unbind(0))
        if functions.chooses_shape(func, args, kwargs):
            call = self._prepare(func, args, kwargs)
            wanted = call is not None and self._compiles_in(call.sources)
            chosen = call.attempt() if call is not None and wanted else None
            if call is not None and chosen is not None:
                # Its shape follows from values: it is a constant of the capture.
                self.read |= call.sources
                return _cloned(chosen)
        func, args, kwargs = functions.settled(
            func, args, kwargs, self._number, self._mask
        )
        # What is known is looked up ahead of the call, which may write to it.
        call = self._prepare(func, args, kwargs)
        result = func(*args, **kwargs)
        self._follow(call, (args, kwargs), func, result)
        return result

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the forward, except where torch itself traces a piece of it."""
        compiling = getattr(flex_attention, _COMPILING, nullcontext)

        @contextmanager
        def alone() -> Iterator[Any]:
            with lifted(self), compiling() as backend:
                yield backend

        setattr(flex_attention, _COMPILING, alone)
        try:
            with self:
                yield
        finally:
            setattr(flex_attention, _COMPILING, compiling)

    def _answer(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        call = self._prepare(func, args, kwargs)
        if call is None:
            tensors = tensors_in((args, kwargs))
            origins = frozenset().union(*map(self._origins_of, tensors))
            raise HostRead(
                f"{getattr(func, '__name__', func)} asks for a value that depends on "
                f"{', '.join(sorted(origins & self._changing or origins))}"
            )
        self.read |= call.sources
        return call.run()

    def _number(self, tensor: Tensor) -> Tensor | None:
        """The value of a number that is about to be compiled in, if it is known."""
        real = self._real(tensor)
        if real is not None:
            self.read |= self._paths(real)
        return real

    def _mask(self, tensor: Tensor) -> Tensor | None:
        """The value of what a shape depends on, if it is to be compiled in."""
        real = self._real(tensor)
        if real is None or not self._compiles_in(self._paths(real)):
            return None
        self.read |= self._paths(real)
        return real

    def _compiles_in(self, sources: Collection[str]) -> bool:
        """Whether to compile in a shape that depends on these arguments."""
        wanted = self._shapes or not sources
        self.left |= not wanted
        return wanted

    def _prepare(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> _Call | None:
        """The call with real operands; None if one is not known."""
        if func in functions.RANDOM:
            return None
        sources: set[str] = set()
        place = functions.TEMPLATE.get(func)
        try:
            values = [
                _like(arg)
                if index == place and isinstance(arg, Tensor)
                else self._substitute(arg, sources)
                for index, arg in enumerate(args)
            ]
            options = self._substitute(kwargs, sources)
        except LookupError:
            return None
        return _Call(func, tuple(values), options, frozenset(sources))

    def _substitute(self, value: Any, sources: set[str]) -> Any:
        """A value with real tensors in the place of traced ones.

        Raises:
            LookupError: If one is not known.
        """
        if isinstance(value, Tensor):
            real = self._real(value)
            if real is None:
                raise LookupError
            sources |= self._paths(real)
            return real
        if isinstance(value, _LEAVES):
            return value
        if type(value) in (tuple, list, torch.Size):
            return type(value)(self._substitute(item, sources) for item in value)
        if type(value) is dict:
            return {k: self._substitute(v, sources) for k, v in value.items()}
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return slice(*(self._substitute(part, sources) for part in parts))
        raise LookupError

    def _follow(
        self, call: _Call | None, given: Any, func: Callable[..., Any], result: Any
    ) -> None:
        """Note of the result whether it is known, and where it comes from."""
        outputs = list(tensors_in(result))
        if not outputs and func not in functions.WRITES:
            return
        real = None if call is None else call.attempt()
        if call is not None and func in functions.WRITES:
            self._group(call.args[0]).paths |= call.sources
            return
        values = list(tensors_in(real))
        if call is not None and _alike(outputs, values):
            for output, value in zip(outputs, values, strict=True):
                self._know(output, value, call.sources)
            return
        origins = frozenset().union(*map(self._origins_of, tensors_in(given)))
        for output in outputs:
            self._reals.pop(output, None)
            self._origins[output] = origins

    def _know(self, traced: Tensor, value: Tensor, paths: Iterable[str]) -> None:
        self._group(value).paths.update(paths)
        self._reals[traced] = _Real(value, version(traced) - version(value))

    def _real(self, traced: Tensor) -> Tensor | None:
        """The real value of a tensor; None if it is not known."""
        if torch.is_inference_mode_enabled():
            # Writes are not counted.
            return None
        if traced not in self._reals and _is_constant(traced):
            self._know(traced, _cloned(traced), ())
        real = self._reals.get(traced)
        if real is None:
            return None
        same = version(traced) - version(real.value) == real.ahead
        return real.value if same else None

    def _group(self, value: Tensor) -> _Sources:
        storage = value.untyped_storage()
        made = self._sources.get(storage._cdata)
        if made is None:
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            made = self._sources[storage._cdata] = _Sources(reference)
        return made

    def _paths(self, value: Tensor) -> set[str]:
        return self._group(value).paths

    def _origins_of(self, traced: Tensor) -> frozenset[str]:
        real = self._real(traced)
        if real is not None:
            return frozenset(self._paths(real))
        unknown = _WRITTEN if traced in self._reals else _WEIGHTS
        return self._origins.get(traced, unknown)  # type: ignore[no-any-return]


def _is_constant(tensor: Tensor) -> bool:
    """Whether a tensor is a real one that the module holds, no weight."""
    return type(tensor) is Tensor and tensor.layout == torch.strided


def _like(tensor: Tensor) -> Tensor:
    """A real tensor of the same type, of no particular values and of no memory.

    Raises:
        LookupError: If its shape depends on data.
    """
    if not _is_sized(tensor):
        raise LookupError
    with untraced():
        element = torch.empty((), dtype=tensor.dtype, device=tensor.device)
        return element.expand(tensor.shape)


def _alike(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(
        _is_sized(a)
        and a.shape == b.shape
        and a.dtype == b.dtype
        and b.layout == torch.strided
        for a, b in zip(left, right, strict=True)
    )


def _is_sized(tensor: Tensor) -> bool:
    """Whether no size depends on data; one that does must not be compared."""
    return all(isinstance(extent, int) for extent in tensor.shape)


def _cloned(value: Any) -> Any:
    with untraced():
        if isinstance(value, Tensor):
            return value.clone()
        return type(value)(item.clone() for item in value)
