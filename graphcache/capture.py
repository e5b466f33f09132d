"""Capture: a module and one call of it become a source program.

`torch.export` traces the module without strict mode (no bytecode analysis, so any
Python in the forward simply runs), and the result is decomposed just far enough to be
functional: composite ops such as `linear`, `layer_norm` and
`scaled_dot_product_attention` stay whole. The program names the module's own
parameters; it holds no tensor of them.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec
from torch.utils import _pytree as pytree

from graphcache import program as ir
from graphcache.errors import CaptureError, VerifyError
from graphcache.signature import Call
from graphcache.spec import verify

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)


@dataclass(frozen=True)
class Capture:
    """A source program and how to give its results back.

    Attributes:
        program: The source program.
        output: Tree of what the module returns with ``return_dict=False``.
    """

    program: ir.Program
    output: pytree.TreeSpec


def capture(module: nn.Module, call: Call) -> Capture:
    """Trace one call of `module` into a source program.

    Args:
        module: A module in eval mode.
        call: The call to specialise on: its shapes, dtypes, devices and its
            arguments that are not tensors.

    Raises:
        CaptureError: If the forward cannot be traced, or writes to its parameters,
            buffers or arguments.
    """
    exported = _export(module, call)
    signature = exported.graph_signature
    _refuse_mutation(signature)
    constants = _constants(exported)
    module_copy = ir.copy_module(exported.graph_module)
    inputs = _inputs(module_copy.graph, signature.input_specs, call)
    _label_regions(module_copy.graph, module)
    _refuse_mixed_dtypes(module_copy.graph)
    program = ir.Program(
        stage=ir.Stage.SOURCE,
        module=module_copy,
        inputs=inputs,
        results=len(ir.output_values(module_copy.graph)),
        constants=constants,
    )
    try:
        verify(program)
    except VerifyError as error:
        raise CaptureError(
            f"{type(module).__name__} cannot be compiled: {error}"
        ) from error
    return Capture(program, exported.call_spec.out_spec)


def output_tree(module: nn.Module, call: Call) -> pytree.TreeSpec:
    """The tree that `module` returns with ``return_dict=True``, from a fake call."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    values = pytree.tree_map_only(Tensor, mode.from_tensor, call.values)
    with torch.no_grad(), mode:
        output = module(**values, return_dict=True)
    return pytree.tree_structure(output)


def _export(module: nn.Module, call: Call) -> torch.export.ExportedProgram:
    arguments = dict(call.values)
    if call.return_dict is not None:
        arguments["return_dict"] = False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own deprecations inside export are not the user's business.
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, (), arguments, strict=False)
            functional: torch.export.ExportedProgram = exported.run_decompositions({})
            return functional
    except Exception as error:
        raise CaptureError(_describe(module, error)) from error


def _describe(module: nn.Module, error: Exception) -> str:
    """Name the module path and source line at which tracing failed."""
    where = ""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            path = _path_of(module, owner)
            if path is not None:
                code = frame.f_code
                shown = path or "the module itself"
                where = f" at {shown} ({code.co_filename}:{line}, in {code.co_name})"
                break
    cause = str(error).strip().split("\n")[0]
    return (
        f"{type(module).__name__} cannot be captured{where}: "
        f"{type(error).__name__}: {cause}. torch.export must be able to trace the "
        "forward: no branching on tensor values, no .item(), no shapes that depend "
        "on data."
    )


def _path_of(root: nn.Module, owner: nn.Module) -> str | None:
    return next((path for path, part in root.named_modules() if part is owner), None)


def _refuse_mutation(signature: ExportGraphSignature) -> None:
    mutated = {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}
    mutated.update(signature.parameters_to_mutate)
    if mutated:
        names = ", ".join(sorted(map(str, mutated.values())))
        raise CaptureError(
            f"the forward writes to {names}: a program is functional, so a module "
            "that changes its own state or its arguments cannot be captured"
        )


def _constants(exported: torch.export.ExportedProgram) -> Mapping[str, Tensor]:
    """Tensors made in the forward or in `__init__` without being registered."""
    wanted = {
        spec.target
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
    return {name: exported.constants[name] for name in sorted(map(str, wanted))}


def _inputs(
    graph: fx.Graph, specs: list[InputSpec], call: Call
) -> tuple[ir.Input, ...]:
    """Name every placeholder's source and drop those of plain Python values."""
    paths = iter(call.paths)
    inputs = []
    for node, spec in zip(ir.placeholders(graph), specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(ir.fake_value(node), Tensor):
                graph.erase_node(node)
                continue
            kind, target = ir.InputKind.ARGUMENT, next(paths)
        elif spec.kind in _WEIGHTS:
            kind, target = ir.InputKind.WEIGHT, str(spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            kind, target = ir.InputKind.CONSTANT, str(spec.target)
        else:
            raise CaptureError(f"the module holds a {spec.kind.name}: {spec.target}")
        inputs.append(ir.Input(node.name, kind, target))
    return tuple(inputs)


def _label_regions(graph: fx.Graph, module: nn.Module) -> None:
    """Note on each node the module calls it is part of, outermost first.

    What later passes know of the modules is this label alone, so that a program can
    be analysed without the model's source.
    """
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


def _class_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


_PRODUCTS = tuple(
    getattr(torch.ops.aten, name).default
    for name in ("linear", "matmul", "bmm", "conv1d", "conv2d", "conv3d")
)


def _refuse_mixed_dtypes(graph: fx.Graph) -> None:
    """Refuse products of different dtypes, which fake tensors let through."""
    for node in graph.nodes:
        if node.target not in _PRODUCTS:
            continue
        dtypes = {ir.fake_value(operand).dtype for operand in node.all_input_nodes}
        if len(dtypes) > 1:
            enclosing = scopes(node)
            path = enclosing[-1].path if enclosing else "the forward"
            names = " and ".join(sorted(map(str, dtypes)))
            raise CaptureError(
                f"the inputs do not fit the weights: {path} multiplies {names} "
                f"({source_line(node)}). Convert the inputs or the module with "
                ".to(dtype)."
            )


def source_line(node: fx.Node) -> str:
    """Where in the user's or the model's source a node was made, torch's own aside."""
    lines = (node.meta.get("stack_trace") or "").splitlines()
    files = [line.strip() for line in lines if line.strip().startswith('File "')]
    own = [line for line in files if "/torch/nn/" not in line]
    return (own or files or ["source line unknown"])[-1]


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
