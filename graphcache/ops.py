r"""The ops of our own: one.

`gate` is the cache: compute or reuse, over explicit operands and explicit state.

.. math::
    (y, s') = p \; ? \; compute(x, s) : reuse(x, s)

where ``p`` is a bool scalar on the CPU, ``x`` the operands, ``s`` the buffers, ``y``
the results and ``s'`` the new buffers. Both branches are graph modules of the same
type. The body below *is* the meaning: every lowering must agree with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._C import DispatchKey
from torch._higher_order_ops.flex_attention import flex_attention
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode

from graphcache.errors import VerifyError
from graphcache.program import TensorType


class GateOp(HigherOrderOperator):
    """Schema of `gate`.

    ``gate(predicate, compute, reuse, operands, buffers) -> (results..., buffers'...)``

    Args:
        predicate: ``bool[]`` on the CPU; True computes.
        compute: Branch ``(*operands, *buffers) -> (results..., buffers'...)``.
        reuse: The other branch, of the same type.
        operands: What the branches read.
        buffers: The gate's cache buffers.
    """

    def __init__(self) -> None:
        super().__init__("graphcache_gate")  # type: ignore[no-untyped-call]

    def __call__(
        self,
        predicate: Tensor,
        compute: fx.GraphModule,
        reuse: fx.GraphModule,
        operands: Sequence[Any],
        buffers: Sequence[Any],
    ) -> tuple[Tensor, ...]:
        return super().__call__(  # type: ignore[no-any-return, no-untyped-call]
            predicate, compute, reuse, tuple(operands), tuple(buffers)
        )


gate = GateOp()

for _key in (
    DispatchKey.AutogradCPU,
    DispatchKey.AutogradCUDA,
    DispatchKey.ADInplaceOrView,
    DispatchKey.BackendSelect,
):
    gate.fallthrough(_key)  # type: ignore[no-untyped-call]


@gate.py_impl(DispatchKey.CompositeExplicitAutograd)
def gate_reference(
    predicate: Tensor,
    compute: fx.GraphModule,
    reuse: fx.GraphModule,
    operands: tuple[Any, ...],
    buffers: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """The meaning of `gate`: run the branch that the predicate names."""
    branch = compute if bool(predicate) else reuse
    return tuple(branch(*operands, *buffers))


@gate.py_impl(FakeTensorMode)
def gate_fake(
    mode: FakeTensorMode,
    predicate: Tensor,
    compute: fx.GraphModule,
    reuse: fx.GraphModule,
    operands: tuple[Any, ...],
    buffers: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """The types of `gate`: both branches run on fakes and must agree.

    Raises:
        VerifyError: If the branches return different types.
    """
    with mode:
        computed = tuple(compute(*operands, *buffers))
        reused = tuple(reuse(*operands, *buffers))
    types = [[TensorType.of(value) for value in side] for side in (computed, reused)]
    if types[0] != types[1]:
        shown = [", ".join(map(str, side)) for side in types]
        raise VerifyError(
            f"the branches of a gate differ: compute returns ({shown[0]}), "
            f"reuse returns ({shown[1]})"
        )
    return computed


@dataclass(frozen=True)
class GateParts:
    """The arguments of a gate node, typed."""

    predicate: fx.Node
    names: tuple[str, str]
    branches: tuple[fx.GraphModule, fx.GraphModule]
    operands: tuple[fx.Node, ...]
    buffers: tuple[fx.Node, ...]


def gate_parts(node: fx.Node) -> GateParts:
    """Read the arguments of a gate node; branches are (compute, reuse)."""
    predicate, compute, reuse, operands, buffers = cast("tuple[Any, ...]", node.args)
    owner = node.graph.owning_module
    assert owner is not None
    names = str(compute.target), str(reuse.target)
    sides = [cast(fx.GraphModule, owner.get_submodule(name)) for name in names]
    return GateParts(
        predicate, names, (sides[0], sides[1]), tuple(operands), tuple(buffers)
    )


def is_gate(node: fx.Node) -> bool:
    """Whether the node is a `gate`."""
    return node.op == "call_function" and node.target is gate


def is_flex_attention(node: fx.Node) -> bool:
    """Whether the node is an attention that is given functions of its scores.

    They are graphs, attributes of the module that holds the node.
    """
    return node.op == "call_function" and node.target is flex_attention


def functions_of(node: fx.Node) -> list[fx.Node]:
    """The attributes that hold the functions that a node is given."""
    if not is_flex_attention(node):
        return []
    return [value for value in node.all_input_nodes if value.op == "get_attr"]


def is_pure(node: fx.Node) -> bool:
    """Whether dropping an unread node changes nothing.

    FX counts `scaled_dot_product_attention` as random and keeps it; it draws random
    numbers only when its dropout probability is not zero.
    """
    if node.op in ("placeholder", "output"):
        return False
    if is_gate(node) or is_flex_attention(node) or node.op == "get_attr":
        return True
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return _op_is_pure(node, node.target)
    return not node.is_impure()


def _op_is_pure(node: fx.Node, op: torch._ops.OpOverload) -> bool:
    if op is torch.ops.aten.scaled_dot_product_attention.default:
        return dropout_probability(node) == 0.0
    if op.namespace != "aten" or torch.Tag.nondeterministic_seeded in op.tags:
        return False
    return not op._schema.is_mutable and not op._schema.name.startswith("aten::_assert")


def dropout_probability(node: fx.Node) -> float:
    """The dropout probability of a `scaled_dot_product_attention` node."""
    position = 4
    value = node.args[position] if len(node.args) > position else 0.0
    return float(node.kwargs.get("dropout_p", value))  # type: ignore[arg-type]
