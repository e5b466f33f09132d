"""Straight-line Python: each node of a lowered program is one ATen call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphcache.backends.registry import Capabilities, Executable, refuse_options
from graphcache.program import Program


class EagerBackend:
    """Runs the code that FX generates from the graph."""

    name = "eager"
    capabilities = Capabilities()

    def compile(self, program: Program, options: Mapping[str, Any]) -> Executable:
        """Generate the code.

        Raises:
            BackendError: If any option is given.
        """
        refuse_options(self.name, options)
        program.module.recompile()
        forward = program.module.forward
        return lambda values: forward(*values)
