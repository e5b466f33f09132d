"""Inductor on a lowered program, without Dynamo in front.

There is no bytecode to guard and nothing to recompile: the program is compiled once,
for the shapes in it, and called with its inputs. Buffers are inputs and outputs, so
the compute variant hands over its attention output instead of copying it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphcache.backends.registry import Capabilities, Executable
from graphcache.errors import BackendError
from graphcache.program import (
    Program,
    copy_module,
    fake_value,
    output_node,
    output_values,
    placeholders,
)

_REPLAYED_MEMORY = ("triton.cudagraphs", "triton.cudagraph_trees")


class InductorBackend:
    """Compiles with `torch._inductor.standalone_compile`."""

    name = "inductor"
    capabilities = Capabilities(conditions=True, compiles=True)

    def compile(self, program: Program, options: Mapping[str, Any]) -> Executable:
        """Compile for the shapes and strides recorded in the program.

        Args:
            program: A lowered program.
            options: Inductor's config options, such as ``{"max_autotune": True}``.

        Raises:
            BackendError: For an option that Inductor does not know or that cannot be
                honoured, or if Inductor fails.
        """
        check_options(options)
        module = _annotated(program.module)
        inputs = [fake_value(node) for node in placeholders(module.graph)]
        try:
            with torch.no_grad():
                compiled = torch._inductor.standalone_compile(
                    module, inputs, dynamic_shapes="from_graph", options=dict(options)
                )
        except Exception as error:
            raise BackendError(f"inductor failed: {error}") from error
        return lambda values: compiled(*values)


def _annotated(module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose outputs name the fake mode that the compiler is to use."""
    copied = copy_module(module)
    for node in output_values(copied.graph):
        node.meta["example_value"] = fake_value(node)
    output_node(copied.graph).args = (list(output_values(copied.graph)),)
    copied.recompile()
    return copied


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that Inductor does not know or that cannot be honoured.

    Raises:
        BackendError: Naming them.
    """
    known = torch._inductor.list_options()
    unknown = sorted(name for name in options if name not in known)
    if unknown:
        raise BackendError(
            f"inductor has no option {', '.join(unknown)}; "
            "torch._inductor.list_options() lists them"
        )
    refused = [name for name in _REPLAYED_MEMORY if options.get(name)]
    if refused:
        raise BackendError(
            f"{', '.join(refused)}: a replayed CUDA graph overwrites its outputs, and "
            "here the outputs of one step are the cache of the next"
        )
