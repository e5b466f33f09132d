"""Quantised weights: what a weight that is no plain tensor is made of.

A quantised weight is a tensor subclass around plain tensors: packed bytes, scales, zero
points. A program holds the plain tensors alone. So each kind of weight can be taken
apart into them, put together from others while a forward is traced, and described, so
that a change of its kind is noticed.

Most kinds say themselves what they are made of (``__tensor_flatten__``: torchao,
quanto). The others have a row in `SCHEMES`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import linear
from torch.utils._pytree import tree_map

from graphcache.errors import CaptureError

Take = Callable[[Any], Tensor]
"""Reads one plain tensor of a weight, given the weight as it is now."""
_PLAIN = (Tensor, nn.Parameter)


class Scheme(Protocol):
    """How weights of one kind are taken apart and put together.

    ``owner`` is the module that holds the weight: some kinds keep a part of it there.
    """

    def takes(self, weight: Any, owner: nn.Module) -> Mapping[str, Take]:
        """By name, how to read each plain tensor that the weight is made of."""
        ...

    def rebuild(
        self, weight: Any, owner: nn.Module, parts: Mapping[str, Tensor]
    ) -> Any:
        """What stands in for the weight in a forward, made of other plain tensors."""
        ...

    def facts(self, weight: Any) -> Any:
        """What the weight is besides its tensors."""
        ...

    def refusal(self, weight: Any, owner: nn.Module, by_dynamo: bool) -> str | None:
        """Why a forward with the weight cannot be captured, and what to do; or None.

        ``by_dynamo``: the graph is one that Dynamo made of the forward as it is.
        """
        ...


class Wrapper:
    """A subclass that says what it is made of, by ``__tensor_flatten__``."""

    def takes(self, weight: Any, owner: nn.Module) -> Mapping[str, Take]:
        """The tensors that the subclass names, and theirs where they are subclasses."""
        return {name: operator.attrgetter(name) for name in _inner_names(weight)}

    def rebuild(
        self, weight: Any, owner: nn.Module, parts: Mapping[str, Tensor]
    ) -> Any:
        """Another instance of the subclass."""
        return _unflattened(weight, parts, "")

    def facts(self, weight: Any) -> Any:
        """What the subclass says besides, and the same of the subclasses within."""
        names, context = weight.__tensor_flatten__()
        inner = [getattr(weight, name) for name in names]
        within = [(type(t), self.facts(t)) for t in inner if not is_plain(t)]
        return tuple(weight.shape), weight.stride(), weight.dtype, context, within

    def refusal(self, weight: Any, owner: nn.Module, by_dynamo: bool) -> str | None:
        """None: what cannot be traced shows when it is."""
        return None


def _inner_names(weight: Any) -> Iterator[str]:
    names, _ = weight.__tensor_flatten__()
    for name in names:
        inner = getattr(weight, name)
        if is_plain(inner):
            yield name
        else:
            yield from (f"{name}.{below}" for below in _inner_names(inner))


def _unflattened(weight: Any, parts: Mapping[str, Tensor], prefix: str) -> Any:
    names, context = weight.__tensor_flatten__()
    inner = {}
    for name in names:
        path, held = f"{prefix}{name}", getattr(weight, name)
        inner[name] = (
            parts[path] if is_plain(held) else _unflattened(held, parts, f"{path}.")
        )
    return type(weight).__tensor_unflatten__(
        inner, context, weight.size(), weight.stride()
    )


def _bytes_of(weight: Tensor) -> Tensor:
    """The weight's own data as a plain tensor: an alias, so that writes are seen."""
    with torch._C.DisableTorchFunctionSubclass():
        return weight.data


class GGUF:
    """diffusers' `GGUFParameter`: blocks of bytes and the number of their type."""

    def takes(self, weight: Any, owner: nn.Module) -> Mapping[str, Take]:
        """The bytes."""
        return {"data": _bytes_of}

    def rebuild(
        self, weight: Any, owner: nn.Module, parts: Mapping[str, Tensor]
    ) -> Any:
        """The bytes themselves, with what `dequantize_gguf_tensor` asks them for."""
        data: Any = parts["data"]
        data.quant_type, data.quant_shape = weight.quant_type, weight.quant_shape
        data.as_tensor = lambda: data
        return data

    def facts(self, weight: Any) -> Any:
        """The type of the blocks."""
        return weight.quant_type

    def refusal(self, weight: Any, owner: nn.Module, by_dynamo: bool) -> str | None:
        """None: its forward is arithmetic on bytes."""
        return None


class QuantoBits(Wrapper):
    """quanto's `WeightQBitsTensor`, which computes with what it dequantises to."""

    def rebuild(
        self, weight: Any, owner: nn.Module, parts: Mapping[str, Tensor]
    ) -> Any:
        """An instance that dequantises itself where it is used.

        quanto does so in ``__torch_dispatch__``, of which `torch.export` makes no use.
        """
        made: Any = super().rebuild(weight, owner, parts)
        if type(made).__name__ == "WeightQBitsTensor":
            kind: Any = type(made)
            made.__class__ = _dequantising(kind)
        return made

    def refusal(self, weight: Any, owner: nn.Module, by_dynamo: bool) -> str | None:
        """Weights packed for a kernel, whose layer takes no traced input."""
        if type(weight).__name__ == "WeightQBitsTensor":
            return None
        return (
            "is packed for a kernel of quanto's that cannot be traced: quantise to "
            "qint8 or qfloat8, or with torchao"
        )


@functools.cache
def _dequantising(kind: Any) -> Any:
    """A subclass of a class of quanto's that dequantises where it is used."""

    def dequantised(value: Any) -> Any:
        return value.dequantize() if isinstance(value, kind) else value

    def function(
        cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func.__name__ == "__get__":
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        args, kwargs = tree_map(dequantised, (args, kwargs or {}))
        return (_linear if func is linear else func)(*args, **kwargs)

    members: dict[str, Any] = {"__torch_function__": classmethod(function)}
    return type(kind.__name__, (kind,), members)


def _linear(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product as quanto writes it, so that it rounds alike."""
    product = torch.matmul(given, weight.t())
    return product if bias is None else product + bias


class BitsAndBytes4:
    """bitsandbytes' `Params4bit`: packed numbers and the state of their blocks."""

    def takes(self, weight: Any, owner: nn.Module) -> Mapping[str, Take]:
        """The packed numbers and their state, which may be packed itself."""
        names = ["absmax", "code"]
        if weight.quant_state.nested:
            names += ["offset", "state2.absmax", "state2.code"]
        paths = [f"quant_state.{name}" for name in names]
        return {"data": _bytes_of, **{p: operator.attrgetter(p) for p in paths}}

    def rebuild(
        self, weight: Any, owner: nn.Module, parts: Mapping[str, Tensor]
    ) -> Any:
        """The packed numbers, with a state of other tensors."""
        data: Any = parts["data"]
        state = copy.copy(weight.quant_state)
        state.absmax = parts["quant_state.absmax"]
        state.code = parts["quant_state.code"]
        if state.nested:
            state.offset = parts["quant_state.offset"]
            state.state2 = copy.copy(state.state2)
            state.state2.absmax = parts["quant_state.state2.absmax"]
            state.state2.code = parts["quant_state.state2.code"]
        data.quant_state = state
        return data

    def facts(self, weight: Any) -> Any:
        """What the state says besides its tensors."""
        return _plain_facts(weight.quant_state)

    def refusal(self, weight: Any, owner: nn.Module, by_dynamo: bool) -> str | None:
        """Weights that the forward packs for the CPU, where it has not done so yet."""
        state: Any = weight.quant_state
        packs = bool(getattr(owner, "support_avx512bf16_for_cpu", False))
        packed = getattr(state, "packing_format_for_cpu", False)
        if not (by_dynamo and packs and weight.device.type == "cpu") or packed:
            return None
        return (
            "is packed for this CPU by its first call, which Dynamo would trace: call "
            "the module once before torch.compile, or use graphcache.compile"
        )


def _plain_facts(state: Any) -> Any:
    """The attributes of an object that are no tensors."""
    return {
        name: _plain_facts(value) if name == "state2" and value is not None else value
        for name, value in vars(state).items()
        if not isinstance(value, Tensor)
    }


class BitsAndBytes8:
    """bitsandbytes' `Int8Params`: rows of int8, whose scales the layer holds."""

    def takes(self, weight: Any, owner: nn.Module) -> Mapping[str, Take]:
        """The rows, and the scale of each."""

        def scales(_: Any) -> Tensor:
            # The layer takes them from the weight at its first call.
            state: Any = owner.state
            found: Tensor = state.SCB if weight.SCB is None else weight.SCB
            return found

        return {"data": _bytes_of, "SCB": scales}

    def rebuild(
        self, weight: Any, owner: nn.Module, parts: Mapping[str, Tensor]
    ) -> Any:
        """The rows, with the scales that the layer's twin asks them for."""
        data: Any = parts["data"]
        data.CB, data.SCB = None, parts["SCB"]
        return data

    def facts(self, weight: Any) -> Any:
        """Whether the layer quantises anew at each call."""
        return weight.has_fp16_weights

    def refusal(self, weight: Any, owner: nn.Module, by_dynamo: bool) -> str | None:
        """Layers that quantise at each call; outliers in Dynamo's graph."""
        if weight.has_fp16_weights:
            return (
                "is quantised anew at each call: make the layer with "
                "has_fp16_weights=False, as diffusers does"
            )
        state: Any = owner.state
        if by_dynamo and state.threshold > 0.0:
            return (
                "looks for outliers (llm_int8_threshold), and Dynamo's graph would "
                "return their list, whose length depends on data: use "
                "graphcache.compile, or llm_int8_threshold=0.0"
            )
        return None


_WRAPPER = Wrapper()
SCHEMES: Mapping[str, Scheme] = {
    "diffusers.quantizers.gguf.utils.GGUFParameter": GGUF(),
    "optimum.quanto.tensor.weights.qbits.WeightQBitsTensor": QuantoBits(),
    "bitsandbytes.nn.modules.Params4bit": BitsAndBytes4(),
    "bitsandbytes.nn.modules.Int8Params": BitsAndBytes8(),
}
"""By class: the kinds that `Wrapper` does not serve."""


@functools.cache
def _scheme_of(kind: Any) -> Scheme | None:
    """How weights of a class are taken apart; None for a class that is not known."""
    for parent in kind.__mro__:
        known = SCHEMES.get(f"{parent.__module__}.{parent.__qualname__}")
        if known is not None:
            return known
    flattens = hasattr(kind, "__tensor_flatten__")
    return _WRAPPER if flattens and hasattr(kind, "__tensor_unflatten__") else None


@functools.cache
def _is_plain_kind(kind: Any) -> bool:
    """Whether tensors of a class compute as plain ones do."""
    if kind in _PLAIN or issubclass(kind, FakeTensor):
        return True
    own: Any = kind.__torch_function__
    function = getattr(own, "__func__", own)
    theirs: Any = Tensor.__torch_function__
    alike = function in (theirs.__func__, torch._C._disabled_torch_function_impl)
    dispatch = getattr(kind, "__torch_dispatch__", None)
    disabled = dispatch is None or dispatch is Tensor.__torch_dispatch__
    return alike and disabled and _scheme_of(kind) is None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is plain data, not one that is made of others."""
    return type(tensor) in _PLAIN or _is_plain_kind(type(tensor))


def scheme_of(weight: Tensor, path: str) -> Scheme:
    """How a weight that is no plain tensor is taken apart.

    Raises:
        CaptureError: If that is not known; the message names the weight and its kind.
    """
    scheme = _scheme_of(type(weight))
    if scheme is None:
        kind = type(weight)
        raise CaptureError(
            f"{path} is a {kind.__module__}.{kind.__qualname__}, a kind of tensor that "
            "cannot be taken apart: it has no __tensor_flatten__. Quantise the module "
            "with torchao, GGUF, bitsandbytes or quanto, or dequantise it first"
        )
    return scheme


def parts_of(weight: Tensor, owner: nn.Module, path: str) -> dict[str, Tensor]:
    """The plain tensors that a quantised weight is made of, by name.

    Args:
        weight: A weight that is no plain tensor.
        owner: The module that holds it.
        path: Its name, for messages.

    Raises:
        CaptureError: If its kind is not known.
    """
    takes = scheme_of(weight, path).takes(weight, owner)
    return {name: take(weight) for name, take in takes.items()}


def structure(weight: Tensor) -> Hashable:
    """What a quantised weight is besides its values.

    A capture is good for one structure: the class, the type of the weight and of the
    tensors that it is made of, and what its class says besides, such as how activations
    are quantised. It takes some tens of microseconds.
    """
    scheme = _scheme_of(type(weight))
    facts = None if scheme is None else _hashable(scheme.facts(weight))
    return type(weight), facts, tuple(_type_of(leaf) for leaf in leaves_of(weight))


def _type_of(leaf: Tensor) -> Hashable:
    return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device


def leaves_of(weight: Tensor) -> Iterator[Tensor]:
    """The tensors that say what a weight's type is: itself, or those inside of it."""
    if is_plain(weight) or not isinstance(_scheme_of(type(weight)), Wrapper):
        yield weight
        return
    for name in _inner_names(weight):
        yield operator.attrgetter(name)(weight)


def _hashable(value: Any) -> Hashable:
    """A value as something that equals itself and hashes."""
    if isinstance(value, Mapping):
        return tuple((key, _hashable(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value), tuple(_hashable(getattr(value, name)) for name in names)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value  # type: ignore[no-any-return]
