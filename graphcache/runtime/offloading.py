"""accelerate's hook on a module as a whole, as model offloading puts it.

It replaces the forward of the instance by one that moves the weights, then calls the
forward beneath. What is compiled is the forward beneath: the hook is put around that.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from graphcache.errors import GraphCacheError
from graphcache.runtime.instances import INSTANCE_HOOKS, instance_of

_MODULE = "accelerate.hooks"


def is_wrapped(module: nn.Module) -> bool:
    """Whether the module has such a hook, right around the forward of its class."""
    if getattr(module, "_hf_hook", None) is None:
        return False
    around: Any = module.forward
    beneath: Any = getattr(module, "_old_forward", None)
    own = getattr(beneath, "__func__", None) is type(module).forward
    return own and _is_accelerates(around, module)


def _is_accelerates(around: Any, module: nn.Module) -> bool:
    if not isinstance(around, functools.partial) or around.args != (module,):
        return False
    return getattr(around.func, "__module__", None) == _MODULE


def unwrapped(module: nn.Module) -> nn.Module:
    """The module without such a hook, sharing everything else; itself if it has none.

    The module keeps its hook.
    """
    if not is_wrapped(module):
        return module
    state = {k: v for k, v in vars(module).items() if k not in INSTANCE_HOOKS}
    return instance_of(type(module), state)


def wrap_as(module: nn.Module, pattern: nn.Module) -> None:
    """Wrap a module as another is, by the same hook; leave it if the other has none.

    The hook is not initialised again, which would move the weights.

    Args:
        module: It shares its weights with `pattern`, and has no such hook.
        pattern: Has the hook.
    """
    if not is_wrapped(pattern):
        return
    beneath: Any = module.forward
    moving: Any = pattern.forward
    around: Any = functools.partial(moving.func, module)
    functools.update_wrapper(around, beneath)
    values = (pattern._hf_hook, beneath, around)
    for name, value in zip(INSTANCE_HOOKS, values, strict=True):
        setattr(module, name, value)


def unwrap_to(module: nn.Module, pattern: nn.Module) -> None:
    """Make the hooks of a module those of another, which may have lost its own.

    Args:
        module: The original of a drop-in.
        pattern: The drop-in.

    Raises:
        GraphCacheError: If the drop-in's forward is replaced by something else.
    """
    own = getattr(pattern.forward, "__func__", None) is type(pattern).forward
    if not own and not is_wrapped(pattern):
        raise GraphCacheError(
            f"the forward of this {type(module).__name__} was replaced after it was "
            "compiled: remove those hooks first"
        )
    for name in INSTANCE_HOOKS:
        vars(module).pop(name, None)
    wrap_as(module, pattern)
