"""State: everything of a module that its forward may depend on, as one value.

A program holds what the forward read while it was traced: scales, switches, the
classes of the layers, the adapters that were active. `state_of` follows all that can be
reached from the module and writes it down by structure. A processor that is replaced by
an equal one is therefore no change, and a state that comes back is recognised. Of
weights the types count and not the values: a program is given the weights at every
call. What has no structure (a function, a tensor outside the weights, an object of C)
counts by identity, and is kept alive for as long as the state is.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _hooks

from graphcache.capture.eager import version
from graphcache.capture.kernels import only_mathematics
from graphcache.quantised import is_plain, leaves_of, structure
from graphcache.runtime.code import code_of, library_of
from graphcache.runtime.instances import INSTANCE_HOOKS
from graphcache.runtime.polls import Polls
from graphcache.signature import is_lazy

_ATOMS = frozenset((str, bytes, type(None), type(Ellipsis)))
_NUMBERS = frozenset((bool, int, float, complex))
_IDENTITIES = (
    *(type, types.ModuleType, types.BuiltinFunctionType, enum.Enum, torch.dtype),
    *(torch.device, torch.layout, torch.memory_format, torch.Generator),
)
_CONTAINERS = frozenset((list, tuple, set, frozenset, deque))
_SMALL = 1 << 16
_OPAQUE = frozenset((*sys.stdlib_module_names, "torch", "numpy"))
"""Libraries whose objects are not looked into."""
_PLUMBING = frozenset(nn.Module().__dict__) - {"training"}
"""What torch keeps on every module. Hooks among it are refused elsewhere."""
_OURS = ("_diffusers_hook", "_graphcache_runner")
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


class ModuleState(NamedTuple):
    """The state of a module at one time.

    Attributes:
        structure: Nested tuples and dicts of plain values; comparable with ``==``.
        kept: Objects that the structure names by identity.
    """

    structure: Any
    kept: list[Any]

    def same(self, other: ModuleState) -> bool:
        """Whether a forward would be traced into the same program in both states."""
        return bool(self.structure == other.structure)


def state_of(module: nn.Module) -> tuple[ModuleState, Polls]:
    """The state of a module, and the polls that tell whether it may have changed.

    Args:
        module: The module. Hooks on the module itself are no part of its state: they
            run around the compiled forward.
    """
    walk = _Walk(module)
    structure = walk.visit(module)
    code = code_of(walk.classes, walk.polls)
    kept = [*walk.kept, *code.kept]
    walk.polls.add_call(_ambient)
    known = structure, code.structure, _ambient()
    return ModuleState(known, kept), walk.polls.seal()


class _Walk:
    """One walk over all that can be reached from a module.

    Attributes:
        polls: On everything that was visited.
        classes: Of the modules and objects that were visited.
        kept: What was written down by identity.
    """

    def __init__(self, root: nn.Module) -> None:
        self.polls = Polls()
        self.classes: dict[type, None] = {}
        self.kept: list[Any] = []
        self._root = root
        self._parts = {id(part) for part in root.modules()}
        self._seen: dict[int, int] = {}
        self._known: dict[int, Any] = {}
        # Objects that are made while walking must not pass on their identity.
        self._alive: list[Any] = []

    def visit(self, value: Any) -> Any:
        """The structure of a value."""
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind in _NUMBERS:
            # One, True and 1.0 are equal, as 0.0 and -0.0 are; a NaN is not to itself.
            return kind, value if value and value == value else repr(value)
        if isinstance(value, nn.Module):
            return self._once(value) or self._module(kind, value)
        if id(value) not in self._known:
            self._alive.append(value)
            # Until it is known: what it is inside of itself.
            self._known[id(value)] = "cycle", kind
            self._known[id(value)] = self._visit_new(kind, value)
        return self._known[id(value)]

    def _once(self, value: Any) -> Any:
        """Where a module or weight was met before; None if it was not.

        Tied weights are one input of a program, and untied ones are two.
        """
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        return None

    def _visit_new(self, kind: type, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._constant(value)
        if isinstance(value, _IDENTITIES):
            return self._identity(value)
        if isinstance(value, (int, float, complex, str, bytes)):
            self.classes[kind] = None
            return kind, _plain(value), self._attributes(value)
        if isinstance(value, _FUNCTIONS):
            return self._function(value)
        if _is_array(kind) and value.nbytes <= _SMALL:
            self.polls.add_call(value.tobytes)
            return kind, str(value.dtype), value.shape, value.tobytes()
        if isinstance(value, dict):
            self.polls.add_dict(value)
            return kind, self._entries(value), self._attributes(value)
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return self._collection(kind, value)
        if isinstance(value, Mapping) and hasattr(value, "__dict__"):
            return kind, self._attributes(value)
        if library_of(kind) in _OPAQUE and kind is not types.SimpleNamespace:
            return self._identity(value)
        self.classes[kind] = None
        return kind, self._attributes(value), self._slots(value)

    def _identity(self, value: Any) -> Any:
        self.kept.append(value)
        return "is", id(value)

    def _constant(self, value: Tensor) -> Any:
        """A tensor that is no weight, which a trace lifts out of the forward."""
        self.polls.add_tensor(value)
        return self._identity(value), version(value)

    def _entries(self, value: Mapping[Any, Any]) -> Any:
        return [(self.visit(key), self.visit(item)) for key, item in value.items()]

    def _collection(self, kind: type, value: Any) -> Any:
        if isinstance(value, (list, deque)):
            self.polls.add_list(value)  # type: ignore[arg-type]
        if isinstance(value, set):
            self.polls.add_set(value)
        own = None
        if kind not in _CONTAINERS:
            self.classes[kind] = None
            own = self._attributes(value)
        if isinstance(value, (set, frozenset)):
            self.kept.extend(value)
            inside = [self.visit(item) for item in sorted(value, key=id)]
            return kind, frozenset(value), inside, own
        return kind, [self.visit(item) for item in value], own

    def _attributes(self, value: Any) -> Any:
        attributes = getattr(value, "__dict__", None)
        self.polls.add_object(value)
        if not isinstance(attributes, dict):
            return None
        return {name: self.visit(item) for name, item in attributes.items()}

    def _slots(self, value: Any) -> Any:
        names = {
            name
            for base in type(value).__mro__
            for name in _names(base.__dict__.get("__slots__", ()))
        }
        for name in names:
            self.polls.add_slot(value, name)
        return {name: self.visit(getattr(value, name, None)) for name in names}

    def _function(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return "method", self.visit(value.__self__), self.visit(value.__func__)
        if isinstance(value, functools.partial):
            return (
                "partial",
                self.visit(value.func),
                self.visit(value.args),
                self._entries(value.keywords),
            )
        cells = value.__closure__ or ()
        for cell in cells:
            self.polls.add_slot(cell, "cell_contents")
        held = [self.visit(getattr(cell, "cell_contents", None)) for cell in cells]
        return self._identity(value), held

    def _module(self, kind: type, part: nn.Module) -> Any:
        if id(part) not in self._parts:
            return self._stowaway(kind, part)
        self.classes[kind] = None
        self.polls.add_object(part)
        groups = (part._parameters, part._buffers)
        # torch's own layers do not look for weights that they were not made with.
        ours = not kind.__module__.startswith("torch.nn.modules")
        for entries in (*groups, part._modules):
            if entries or ours:
                self.polls.add_dict(entries)
        if part is not self._root:
            self.polls.add_hooks(part._forward_hooks)
            self.polls.add_hooks(part._forward_pre_hooks)
        return (
            kind,
            {
                name: self.visit(value)
                for name, value in part.__dict__.items()
                if not self._is_plumbing(part, name, value)
            },
            self._weights([*part._parameters.items(), *part._buffers.items()]),
            [(name, self.visit(child)) for name, child in part._modules.items()],
        )

    def _stowaway(self, kind: type, part: nn.Module) -> Any:
        """A module that is held outside the tree: its weights are constants."""
        self.classes[kind] = None
        self.polls.add_object(part)
        for entries in (part._parameters, part._buffers, part._modules):
            self.polls.add_dict(entries)
        return kind, {
            name: self.visit(value)
            for name, value in part.__dict__.items()
            if name in ("_parameters", "_buffers", "_modules") or name not in _PLUMBING
        }

    def _is_plumbing(self, part: nn.Module, name: str, value: Any) -> bool:
        if name in _PLUMBING or name in _OURS:
            return True
        if part is self._root and name in INSTANCE_HOOKS:
            return True
        # A hook that was removed leaves the class's own forward on the instance.
        own = getattr(value, "__func__", None) is type(part).forward
        return name == "forward" and own

    def _weights(self, named: list[tuple[str, Tensor | None]]) -> Any:
        leaves: list[Tensor] = []
        found = [(name, self._weight(weight, leaves)) for name, weight in named]
        self.polls.add_weights(leaves)
        return found

    def _weight(self, weight: Tensor | None, found: list[Tensor]) -> Any:
        if weight is None:
            return None
        tied = self._once(weight)
        if tied is not None:
            return tied
        leaves = list(leaves_of(weight))
        found.extend(leaves)
        if not is_plain(weight):
            # Its tensors may be replaced, and what its class says of it may change.
            self.polls.add_object(weight)
            return structure(weight)
        return type(weight), [
            (
                *(type(leaf), tuple(leaf.shape), leaf.stride(), leaf.dtype),
                *(leaf.device, is_lazy(leaf)),
            )
            for leaf in leaves
        ]


def _plain(value: Any) -> Any:
    """The value of an object of a subclass of a number's or a text's class."""
    bases: tuple[type[Any], ...] = (int, float, complex, str, bytes)
    return repr(next(base(value) for base in bases if isinstance(value, base)))


def _is_array(kind: type) -> bool:
    """Whether it is numpy's array, asked without importing numpy."""
    return (kind.__module__, kind.__name__) == ("numpy", "ndarray")


def _ambient() -> tuple[Any, ...]:
    """Settings of torch's that change what is traced."""
    return (
        only_mathematics(),
        torch.get_default_dtype(),
        torch._C._len_torch_function_stack(),
        len(_hooks._global_forward_hooks),
        len(_hooks._global_forward_pre_hooks),
    )


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
