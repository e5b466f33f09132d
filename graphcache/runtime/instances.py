"""Instances that share their state with another."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

from torch import nn

INSTANCE_HOOKS = ("_hf_hook", "_old_forward", "forward")
"""What offloading puts on the instance it hooks."""


def bare(module: nn.Module) -> nn.Module:
    """The module as its class defines it: without hooks on the instance itself.

    Offloading wraps the forward of the instance in the pipeline; what is captured is
    the forward beneath.
    """
    state = {k: v for k, v in module.__dict__.items() if k not in INSTANCE_HOOKS}
    # Hooks of the instance run around the compiled forward; they must not be in it.
    state |= {"_forward_hooks": OrderedDict(), "_forward_pre_hooks": OrderedDict()}
    return instance_of(type(module), state)


def instance_of(kind: type, state: dict[str, Any]) -> nn.Module:
    """An instance with the given state; the constructor does not run."""
    instance: Any = object.__new__(kind)
    object.__setattr__(instance, "__dict__", state)
    return cast(nn.Module, instance)
