"""T-GATE: text matters early, so cross-attention is frozen once the gate is passed.

Until the gate, self-attention is computed at intervals after a warm-up. The gate step
itself is the last at which cross-attention runs. With guidance in one batch the authors
also average the two halves there and go on without the unconditional one; that is a
change of the loop, not of the layer, and is left out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from tests.parts import attentions, is_cross
from tests.references.fora import layers
from tests.references.holding import holding
from tests.references.patching import Log


def t_gate(
    module: nn.Module,
    gate_step: int = 10,
    self_interval: int = 5,
    warmup: int = 2,
    late_interval: int = 1,
) -> AbstractContextManager[Log]:
    """Gate the attentions inside the root's blocks.

    Args:
        module: The transformer.
        gate_step: How many steps compute cross-attention.
        self_interval: Before the gate step, self-attention runs at multiples of it.
        warmup: The first step at which self-attention may be reused is the one after.
        late_interval: After the gate step, self-attention runs at multiples of it.
    """
    inside = set(layers(module)) & set(attentions(module))
    cross = {path for path in inside if is_cross(path, module.get_submodule(path))}

    def computes(path: str, step: int) -> bool:
        if path in cross:
            return step < gate_step
        if step <= warmup or step == gate_step - 1:
            return True
        return step % (self_interval if step < gate_step else late_interval) == 0

    return holding(module, sorted(inside), computes)
