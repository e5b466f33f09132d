"""What all blocks do to the latents' stream."""

from __future__ import annotations

from torch import fx

from graphcache.analysis.residual import pair
from graphcache.analysis.view import Analysis
from graphcache.errors import PolicyError
from graphcache.policy.probes import require_chain


def trunk_stream(analysis: Analysis, what: str) -> tuple[fx.Node, fx.Node]:
    """The latents' stream as it enters the first block and as it leaves the last.

    Args:
        analysis: The graph.
        what: What it is needed for, for the message.

    Raises:
        PolicyError: If there are no blocks, or the stream does not go through them.
    """
    chain = require_chain(analysis, 1, what)
    run = analysis.run(0, 0)
    for result in run.results:
        entry = pair(result, run.starts)
        if entry is not None and analysis.is_hidden(entry):
            return entry, result
    raise PolicyError(
        f"{what} needs a stream of the latents that goes through all blocks, and "
        f"nothing that leaves {run.last} continues what enters "
        f"{chain[0].scope.path}"
    )
