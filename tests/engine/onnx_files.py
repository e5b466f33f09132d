"""Programs written as ONNX and opened again, without an engine around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.backends.registry import Executable, get_backend
from graphcache.engine.formats import Entry, Job, get_format
from graphcache.engine.tensors import store_tensors
from graphcache.program import (
    Input,
    InputKind,
    Program,
    TensorType,
    fake_value,
    output_values,
    placeholders,
)

CPU = torch.device("cpu")
Held = dict[tuple[InputKind, str], Tensor]


@dataclass(frozen=True)
class Files:
    """What was written, and what it was written from."""

    folder: Path
    programs: Mapping[str, Program]
    entries: Sequence[Entry]
    held: Held
    runs: Mapping[str, Executable]

    def model(self, name: str) -> Any:
        """The ONNX file of a program, without its weights."""
        import onnx

        return onnx.load(self.folder / f"{name}.onnx", load_external_data=False)


def write(
    module: nn.Module, programs: Sequence[Program], folder: Path, **options: Any
) -> Files:
    """Write programs and open them.

    Args:
        module: Owner of the weights.
        programs: Called ``p0``, ``p1`` and so on.
        folder: Where to.
        **options: The format's options.
    """
    named = {f"p{index}": program for index, program in enumerate(programs)}
    held = _held(module, programs)
    stored = store_tensors(folder, held, {})
    entries = [_entry(name, program) for name, program in named.items()]
    form = get_format("onnx")
    details = form.write(Job(named, folder, stored, CPU, options))
    runs = form.open(folder, entries, details, CPU, held)
    return Files(folder, named, entries, held, runs)


def assert_agree(
    files: Files,
    arguments: Mapping[str, Tensor],
    change: Callable[[Input, Tensor], Tensor] = lambda given, value: value,
) -> None:
    """Check every program against the eager backend, on the same inputs.

    Args:
        files: What was written.
        arguments: The call's arguments, by path.
        change: Makes an input another one.
    """
    for name, program in files.programs.items():
        values = [
            change(given, value)
            for given, value in zip(
                program.inputs, _values(program, files.held, arguments), strict=True
            )
        ]
        with torch.no_grad():
            wanted = get_backend("eager").compile(program, {})(list(values))
            found = files.runs[name](list(values))
        for got, want in zip(found, wanted, strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            numbers = torch.view_as_real(want) if want.is_complex() else want
            sizes = numbers.double().nan_to_num().abs()
            scale = float(sizes.max()) if sizes.numel() else 0.0
            torch.testing.assert_close(
                got, want, rtol=1e-5, atol=1e-5 * scale, equal_nan=True
            )


def _held(module: nn.Module, programs: Sequence[Program]) -> Held:
    weights = dict(module.named_parameters(remove_duplicate=False))
    weights |= dict(module.named_buffers(remove_duplicate=False))
    found: Held = {}
    for program in programs:
        for entry in program.inputs_of(InputKind.WEIGHT):
            found[entry.kind, entry.target] = weights[entry.target].detach()
        for entry in program.inputs_of(InputKind.CONSTANT):
            found[entry.kind, entry.target] = program.constants[entry.target]
    return found


def _entry(name: str, program: Program) -> Entry:
    inputs = [TensorType.of(fake_value(node)) for node in placeholders(program.graph)]
    outputs = [TensorType.of(fake_value(node)) for node in output_values(program.graph)]
    return Entry(name, program.inputs, tuple(inputs), tuple(outputs))


def _values(
    program: Program, held: Held, arguments: Mapping[str, Tensor]
) -> list[Tensor]:
    """The call's arguments, weights, and noise for what a loop would bind."""
    generator = torch.Generator().manual_seed(3)
    values = []
    for given, node in zip(program.inputs, placeholders(program.graph), strict=True):
        fake = fake_value(node)
        if given.kind is InputKind.ARGUMENT:
            value = arguments[given.target]
        elif given.kind in (InputKind.WEIGHT, InputKind.CONSTANT):
            value = held[given.kind, given.target]
        else:
            value = torch.rand(fake.shape, generator=generator) * 2
            value = value.to(fake.dtype) if fake.dtype.is_floating_point else value > 1
        values.append(value)
    return values
