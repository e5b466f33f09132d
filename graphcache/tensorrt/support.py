"""What TensorRT would make of lowered programs, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from graphcache.capture.labels import scopes
from graphcache.errors import BackendError
from graphcache.program import InputKind, Program, fake_value, placeholders
from graphcache.tensorrt.build import lower_for_tensorrt, settings_of, unsupported
from graphcache.tensorrt.options import BuildOptions
from graphcache.tensorrt.packages import Compiler, load_compiler
from graphcache.tensorrt.prepare import Prepared, prepare

_BUILT_IN = (InputKind.WEIGHT, InputKind.CONSTANT)


@dataclass(frozen=True)
class Unsupported:
    """An operator without a converter.

    Attributes:
        op: The operator, as torch_tensorrt lowered it.
        path: The module call that it is part of; empty for the root.
        line: The line of the model's source; empty if it is not known.
    """

    op: str
    path: str
    line: str

    def __str__(self) -> str:
        place = f" in {self.path}" if self.path else ""
        return f"{self.op}{place}" + (f" ({self.line})" if self.line else "")


def report(programs: Sequence[Program]) -> tuple[str, ...]:
    """Lines about programs: how each would be built, and what stands in the way."""
    sizes = [f"tensorrt engine {i}: {_sizes(p)}" for i, p in enumerate(programs)]
    return (*sizes, *_converters(programs))


def _sizes(program: Program) -> str:
    nodes = {node.name: node for node in placeholders(program.graph)}
    size = sum(
        fake_value(nodes[entry.name]).nbytes
        for entry in program.inputs
        if entry.kind in _BUILT_IN
    )
    return (
        f"{len(program.graph.nodes)} nodes, {size} bytes of weights as shared inputs, "
        f"or as many of its own with weights='constants'"
    )


def _converters(programs: Sequence[Program]) -> Iterator[str]:
    compiler: Compiler | None = None
    try:
        compiler = load_compiler(BackendError)
    except BackendError as error:
        yield f"tensorrt converters: not checked, {error}"
    for index, program in enumerate(programs):
        try:
            prepared = prepare(program)
            found = unsupported_ops(prepared, compiler) if compiler else []
        except BackendError as error:
            yield f"tensorrt engine {index}: {error}"
            continue
        for op in dict.fromkeys(found):
            yield f"tensorrt engine {index}: no converter for {op}"
    if compiler:
        yield f"tensorrt converters: checked with {compiler.flavour} {compiler.version}"


def unsupported_ops(prepared: Prepared, compiler: Compiler) -> list[Unsupported]:
    """The operators of a program that TensorRT has no converter for."""
    settings = settings_of(BuildOptions(), compiler)
    lowered = lower_for_tensorrt(prepared, settings, compiler)
    return [
        Unsupported(str(node.target), _path(node), source_line(node))
        for node in unsupported(lowered, settings, compiler)
    ]


def _path(node: fx.Node) -> str:
    around = scopes(node)
    return around[-1].path if around else ""


def source_line(node: fx.Node) -> str:
    """``file.py:12``: the innermost line of the model that a node was traced from."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    if not places:
        return ""
    _, name, rest = places[-1].split('"', 2)
    number = rest.split("line", 1)[1].split(",", 1)[0].strip()
    return f"{name.rpartition('/')[2]}:{number}"
