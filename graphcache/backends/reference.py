"""The oracle: an interpreter of cached programs, one node at a time.

It runs the `gate` op by its reference body, so it says what every lowering must
compute. It is not fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from graphcache.backends.registry import Capabilities, Executable, refuse_options
from graphcache.program import Program


class ReferenceBackend:
    """Interprets the graph."""

    name = "reference"
    capabilities = Capabilities(gates=True)

    def compile(self, program: Program, options: Mapping[str, Any]) -> Executable:
        """Wrap the program in an interpreter.

        Raises:
            BackendError: If any option is given.
        """
        refuse_options(self.name, options)
        interpreter = fx.Interpreter(program.module)
        return lambda values: tuple(interpreter.run(*values))
