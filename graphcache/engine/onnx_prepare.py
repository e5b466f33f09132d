"""What torch's exporter needs of a graph and a program does not promise.

* Conditions that neither take nor give views: ONNX knows none, and the copies vanish.
* No op that the exporter does not know, where the ops that it is made of are known.
* All types in one fake mode: each pass that noted some had its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from graphcache.program import (
    copy_module,
    fake_value,
    output_node,
    output_values,
    placeholders,
)

_aten = torch.ops.aten
_cond = torch.ops.higher_order.cond


def prepared(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a program's graph, ready for torch's exporter."""
    copied = _copy(module)
    mode = FakeTensorMode()
    with mode:
        inputs = [_empty_like(fake_value(node)) for node in placeholders(copied.graph)]
    _Types(copied, mode).propagate_dont_convert_inputs(*inputs)
    return copied


class _Types(FakeTensorProp):
    """Works out all types anew, those in branches as well."""

    def run_node(self, n: fx.Node) -> Any:
        """One node, after the branches that it has."""
        if n.target is _cond:
            (_, *branches, operands), _ = self.fetch_args_kwargs_from_env(n)
            for branch in branches:
                side = _Types(branch, self._mode)
                side.propagate_dont_convert_inputs(*operands)
        return super().run_node(n)


def _empty_like(value: Tensor) -> Tensor:
    return torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device=value.device
    )


def _copy(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with branches of its own."""
    copied = copy_module(module)
    for node in list(copied.graph.nodes):
        if node.target is _cond:
            _separate(copied, node)
        elif rewrite := _REWRITES.get(node.target):
            rewrite(node)
    copied.recompile()
    return copied


def _separate(module: fx.GraphModule, node: fx.Node) -> None:
    """Copy what a condition takes and gives where it may be a view of another value."""
    predicate, *branches, operands = cast("tuple[Any, ...]", node.args)
    for branch in branches:
        side = module.get_submodule(branch.target)
        assert isinstance(side, fx.GraphModule)
        module.add_submodule(branch.target, _dense(side))
    given: list[Any] = []
    with node.graph.inserting_before(node):
        for value in operands:
            shared = value.op != "placeholder" or value in given
            given.append(_dense_value(value) if shared else value)
    node.args = (predicate, *branches, tuple(given))


def _dense(side: fx.GraphModule) -> fx.GraphModule:
    """A copy of a branch whose results are dense."""
    copied = _copy(side)
    output = output_node(copied.graph)
    with copied.graph.inserting_before(output):
        given = [_dense_value(value) for value in output_values(copied.graph)]
    output.args = (tuple(given),)
    copied.recompile()
    return copied


def _dense_value(value: fx.Node) -> fx.Node:
    fake = fake_value(value)
    if not isinstance(fake, Tensor):
        return value
    node = value.graph.call_function(
        _aten.clone.default, (value,), {"memory_format": torch.contiguous_format}
    )
    node.meta["val"] = fake
    return node


def _expand_frequencies(node: fx.Node) -> None:
    """Write out the frequencies of a transform: they are constants."""
    fake = fake_value(node)
    count, *rest = node.args
    assert isinstance(count, int)
    spacing = rest[0] if rest else node.kwargs.get("d", 1.0)
    assert isinstance(spacing, (int, float))
    kind = {"dtype": fake.dtype, "device": fake.device}
    graph, arange = node.graph, _aten.arange.start
    with graph.inserting_before(node):
        rising = graph.call_function(arange, (0, (count + 1) // 2), kind)
        falling = graph.call_function(arange, (-(count // 2), 0), kind)
        order = graph.call_function(_aten.cat.default, ([rising, falling],))
        scaled = graph.call_function(_aten.mul.Tensor, (order, 1.0 / (count * spacing)))
    scaled.meta["val"] = fake
    node.replace_all_uses_with(scaled)
    graph.erase_node(node)


def _drop_idle(node: fx.Node) -> None:
    """Let a squeeze name dimensions of extent 1 only: for others, ONNX has an error."""
    value, dims = node.args
    assert isinstance(value, fx.Node)
    named = dims if isinstance(dims, (list, tuple)) else [dims]
    shape = fake_value(value).shape
    kept = [dim for dim in named if shape[dim] == 1]
    if kept:
        node.target, node.args = _aten.squeeze.dims, (value, kept)
    else:
        node.replace_all_uses_with(value)
        node.graph.erase_node(node)


def _as_reals(node: fx.Node) -> None:
    """Move complex numbers about as pairs of reals: the exporter cannot otherwise."""
    value, argument = node.args[:2]
    assert isinstance(value, fx.Node)
    fake = fake_value(value)
    if not fake.is_complex():
        return
    given: list[Any] = [argument]
    if node.target is _aten.unsqueeze.default:
        given = [cast(int, argument) % (fake.ndim + 1)]
    elif node.target is _aten.expand.default:
        given = [[*cast("list[int]", argument), 2]]
    else:
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        given += [cast(int, dim) % fake.ndim]
    with node.graph.inserting_before(node):
        node.args = (_call(_aten.view_as_real.default, value), *given)
    node.kwargs = {}
    wholes = [node] if isinstance(fake_value(node), Tensor) else list(node.users)
    for part in wholes:
        _whole_again(part)


def _whole_again(pairs: fx.Node) -> None:
    """Let those that read complex numbers find them."""
    readers = list(pairs.users)
    with pairs.graph.inserting_after(pairs):
        whole = _call(_aten.view_as_complex.default, pairs)
    whole.meta["val"] = fake_value(pairs)
    for reader in readers:
        reader.replace_input_with(pairs, whole)


def _call(target: Any, value: fx.Node) -> fx.Node:
    return value.graph.call_function(target, (value,))


_REWRITES: dict[Any, Callable[[fx.Node], None]] = {
    _aten.fft_fftfreq.default: _expand_frequencies,
    _aten.squeeze.dim: _drop_idle,
    _aten.squeeze.dims: _drop_idle,
    _aten.expand.default: _as_reals,
    _aten.split_with_sizes.default: _as_reals,
    _aten.unsqueeze.default: _as_reals,
}
