"""Variants: one executable per reachable decision signature, and how to call it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphcache.backends.registry import Executable
from graphcache.policy.decisions import Signature
from graphcache.program import Buffer, Input, InputKind, Program
from graphcache.runtime.streams import Stream


@dataclass(frozen=True)
class Weights:
    """Where a program's weights live in the module, to be read at every call.

    Reading them anew costs tens of nanoseconds each and means that a weight that was
    written, moved or replaced is seen.
    """

    owners: tuple[dict[str, Any], ...]
    names: tuple[str, ...]

    @staticmethod
    def of(module: nn.Module, inputs: Sequence[Input]) -> Weights:
        """The weights that the inputs name."""
        owners, names = [], []
        for entry in inputs:
            path, _, name = entry.target.rpartition(".")
            part = module.get_submodule(path)
            owners.append(
                part._parameters if name in part._parameters else part._buffers
            )
            names.append(name)
        return Weights(tuple(owners), tuple(names))

    def read(self) -> list[Tensor]:
        """The weights as they are now."""
        return list(map(operator.getitem, self.owners, self.names))


@dataclass(frozen=True)
class Variant:
    """An executable and the binding of its inputs, in kind order.

    Attributes:
        program: What was compiled.
        run: The compiled function.
        weights: Bound first.
        fixed: Constants, bound next.
        arguments: Which flat call arguments are bound next.
        decisions: Decisions, for backends that take gates.
        reads: Buffers bound last.
        released: Buffers that are replaced unread, freed before the call.
    """

    program: Program
    run: Executable
    weights: Weights
    fixed: tuple[Tensor, ...]
    arguments: tuple[int, ...]
    decisions: tuple[Tensor, ...]
    reads: tuple[Buffer, ...]
    released: tuple[str, ...]

    @staticmethod
    def bind(
        program: Program,
        run: Executable,
        signature: Signature,
        module: nn.Module,
        paths: Sequence[str],
    ) -> Variant:
        """Bind a program's inputs.

        Args:
            program: What `run` was compiled from.
            run: The compiled function.
            signature: The decisions it is called under.
            module: Owner of the weights.
            paths: Path of every flat tensor argument of the call.
        """
        chosen = dict(zip(program.predicates, signature, strict=True))
        types = {buffer.name: buffer for buffer in program.buffers}
        reads = [entry.target for entry in program.inputs_of(InputKind.BUFFER)]
        return Variant(
            program=program,
            run=run,
            weights=Weights.of(module, program.inputs_of(InputKind.WEIGHT)),
            fixed=tuple(
                program.constants[entry.target]
                for entry in program.inputs_of(InputKind.CONSTANT)
            ),
            arguments=tuple(
                paths.index(entry.target)
                for entry in program.inputs_of(InputKind.ARGUMENT)
            ),
            decisions=tuple(
                torch.tensor(chosen[entry.target])
                for entry in program.inputs_of(InputKind.DECISION)
            ),
            reads=tuple(types[name] for name in reads),
            released=tuple(name for name in program.stores if name not in reads),
        )

    def __call__(self, tensors: Sequence[Tensor], stream: Stream) -> list[Tensor]:
        """Run one step: read the stream's buffers, replace them, return the results."""
        values: list[Any] = [
            *self.weights.read(),
            *self.fixed,
            *[tensors[index] for index in self.arguments],
            *self.decisions,
            *stream.read(self.reads),
        ]
        stream.release(self.released)
        outputs = self.run(values)
        results = self.program.results
        stream.buffers.update(zip(self.program.stores, outputs[results:], strict=True))
        return list(outputs[:results])
