"""Straight-line Python: each node of a lowered program is one ATen call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphcache.backends.registry import Capabilities, Executable, refuse_options
from graphcache.program import Program, Stage


class EagerBackend:
    """Runs the code that FX generates from the graph."""

    name = "eager"
    capabilities = Capabilities(conditions=True)

    def compile(self, program: Program, options: Mapping[str, Any]) -> Executable:
        """Generate the code.

        Raises:
            BackendError: If any option is given.
        """
        refuse_options(self.name, options)
        program.module.recompile()
        forward = program.module.forward

        def run(values: list[Any]) -> Sequence[Tensor]:
            # Under autograd's key, a condition would be traced anew at every call.
            with torch._C._AutoDispatchBelowAutograd():
                outputs: Sequence[Tensor] = forward(*values)
            return outputs

        if program.stage is Stage.CONDITIONAL:
            return run
        return lambda values: forward(*values)
