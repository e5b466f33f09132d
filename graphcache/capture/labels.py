"""Scopes: which module calls and which source line a node comes from.

What later passes know of the modules is these labels alone, so that a program can be
analysed without the model's source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from graphcache.ops import functions_of
from graphcache.program import fake_value, static_type


@dataclass(frozen=True)
class Scope:
    """One module call that encloses a node.

    Attributes:
        key: Unique to the call; a module called twice has two.
        path: The module path, as in ``named_modules()``.
        module_class: Qualified name of the module's class.
        declares_cross: The module's own ``is_cross_attention``.
    """

    key: str
    path: str
    module_class: str
    declares_cross: bool


def scopes(node: fx.Node) -> tuple[Scope, ...]:
    """The module calls that enclose a node, outermost first."""
    return (node.meta.get("custom") or {}).get("scopes", ())  # type: ignore[no-any-return]


def label_scopes(graph: fx.Graph, module: nn.Module) -> None:
    """Note on each node the module calls it is part of, outermost first."""
    declared = {
        path: bool(getattr(part, "is_cross_attention", False))
        for path, part in module.named_modules()
    }
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["custom"] = {
            **(node.meta.get("custom") or {}),
            "scopes": tuple(
                Scope(
                    key=str(key),
                    path=path,
                    module_class=_class_name(kind),
                    declares_cross=declared.get(path, False),
                )
                for key, (path, kind) in stack.items()
            ),
        }


def place_functions(graph: fx.Graph) -> None:
    """Put the functions that a node is given where the node is, for it alone."""
    for node in list(graph.nodes):
        for held in functions_of(node):
            with graph.inserting_before(node):
                own = graph.create_node("get_attr", held.target)
            own.meta["custom"] = {"scopes": scopes(node)}
            node.replace_input_with(held, own)
            if not held.users:
                graph.erase_node(held)


def spreads(graph: fx.Graph) -> bool:
    """Whether a tensor of a size that depends on data leaves the call that makes it.

    One that the root makes is to stay with the root.
    """
    return any(
        _leaves(scopes(node), scopes(user))
        for node in graph.nodes
        if isinstance(fake_value(node), Tensor) and static_type(node) is None
        for user in node.users
        if user.op != "output"
    )


def _leaves(maker: tuple[Scope, ...], reader: tuple[Scope, ...]) -> bool:
    is_root = not maker or not maker[-1].path
    return maker != reader if is_root else maker != reader[: len(maker)]


def _class_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
