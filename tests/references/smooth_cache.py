"""SmoothCache: a schedule for each type of layer, from errors measured beforehand.

The type of a layer is the last part of its path. The error of a type at a lag is the
relative L1 distance of a layer's outputs that many steps apart, over all layers of the
type. A scan then lets every computed output live as long as its error allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.parts import name_of
from tests.references.fora import layers
from tests.references.holding import holding
from tests.references.patching import Forward, Log, replaced

Schedule = dict[str, list[int]]
Errors = dict[str, list[list[float]]]


def smooth_cache(
    module: nn.Module, schedule: Mapping[str, Sequence[int]]
) -> AbstractContextManager[Log]:
    """Hold outputs of layers whose type has a schedule: one computes, zero reuses."""
    paths = [path for path in layers(module) if name_of(path) in schedule]

    def computes(path: str, step: int) -> bool:
        return bool(schedule[name_of(path)][step])

    return holding(module, paths, computes)


def layer_errors(module: nn.Module, loop: Callable[[], Any], lags: int = 3) -> Errors:
    """By type, the mean error of reusing step i's output at step i + 1, i + 2, ...

    ``errors[type][i][lag - 1]``; rows near the end are shorter.
    """
    outputs: dict[str, list[list[Tensor]]] = defaultdict(list)

    def wrapper(path: str) -> Callable[[Forward], Forward]:
        def wrap(forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                leaves = pytree.tree_leaves(output)
                outputs[path].append([leaf.float().clone() for leaf in leaves])
                return output

            return run

        return wrap

    with replaced(module, {path: wrapper(path) for path in layers(module)}):
        loop()
    by_type: dict[str, list[list[list[float]]]] = defaultdict(list)
    for path, seen in outputs.items():
        by_type[name_of(path)].append(_table(seen, lags))
    return {kind: _mean(tables) for kind, tables in by_type.items()}


def smooth_schedule(errors: Errors, alpha: float) -> Schedule:
    """Scan each type: a computed output lives as long as its error is at most alpha."""
    return {kind: _scan(table, alpha) for kind, table in errors.items()}


def _scan(table: Sequence[Sequence[float]], alpha: float) -> list[int]:
    schedule = [1] * len(table)
    step = 0
    while step < len(table):
        lives = [lag for lag, error in enumerate(table[step], 1) if error <= alpha]
        longest = max(lives, default=0)
        for reused in range(step + 1, step + 1 + longest):
            schedule[reused] = 0
        step += longest + 1
    # The last step has the final say on details.
    schedule[-1] = 1
    return schedule


def _table(seen: list[list[Tensor]], lags: int) -> list[list[float]]:
    steps = len(seen)
    return [
        [
            _distance(seen[step], seen[step + lag])
            for lag in range(1, lags + 1)
            if step + lag < steps
        ]
        for step in range(steps)
    ]


def _distance(held: list[Tensor], true: list[Tensor]) -> float:
    gap = sum((a - b).abs().sum() for a, b in zip(held, true, strict=True))
    return float(gap / sum(tensor.abs().sum() for tensor in true))


def _mean(tables: list[list[list[float]]]) -> list[list[float]]:
    return [
        [sum(errors) / len(errors) for errors in zip(*rows, strict=True)]
        for rows in zip(*tables, strict=True)
    ]
