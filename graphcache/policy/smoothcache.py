"""SmoothCache.

Liu et al., "SmoothCache: A Universal Inference Acceleration Technique for Diffusion
Transformers", arXiv 2411.10510: how far the outputs of each type of layer are apart
after one, two and more steps is measured once for a model, and made into a schedule
that says per type and step whether the layers are computed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphcache.analysis.view import Analysis
from graphcache.errors import PolicyError
from graphcache.policy.decisions import Mask
from graphcache.policy.policy import Policy
from graphcache.program import Region

KINDS = ("attention", "feed-forward")
"""Kinds of regions that are layers."""


def layer_type(region: Region) -> str:
    """The type of a layer: the last name in its path, such as ``attn1`` or ``ff``."""
    names = [name for name in region.path.split(".") if not name.isdigit()]
    return names[-1] if names else region.kind


def layers_of(regions: Iterable[Region]) -> Counter[str]:
    """How many layers of each type there are among regions."""
    return Counter(layer_type(r) for r in regions if r.kind in KINDS)


def model_class(analysis: Analysis) -> str:
    """The name of the captured module's class."""
    root = next((s for s in analysis.scopes.values() if not s.path), None)
    return "" if root is None else root.module_class.rpartition(".")[2]


@dataclass(frozen=True)
class SmoothCacheSchedule:
    """What is computed, by type of layer and step, and of which model that is true.

    Args:
        computed: By type of layer, one 0 or 1 per step.
        model: Name of the class of the model it was made for; empty for any.
        layers: By type, how many layers the model has; empty for any number.

    Raises:
        PolicyError: If there is no schedule, one holds anything but 0 and 1, or their
            lengths differ.
    """

    computed: Mapping[str, Sequence[int]]
    model: str = ""
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.computed:
            raise PolicyError("the schedule says nothing of any type of layer")
        masks = {name: Mask(tuple(row)) for name, row in self.computed.items()}
        lengths = {len(mask.computed) for mask in masks.values()}
        if len(lengths) > 1:
            raise PolicyError(
                f"the schedule has {' and '.join(map(str, sorted(lengths)))} steps for "
                "different types of layers: make one for one number of steps"
            )
        rows = {name: mask.computed for name, mask in masks.items()}
        object.__setattr__(self, "computed", rows)
        object.__setattr__(self, "layers", dict(self.layers))

    @property
    def steps(self) -> int:
        """The number of steps it is for."""
        return len(next(iter(self.computed.values())))

    def to_json(self) -> str:
        """As text, one line per type of layer."""
        rows = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps(list(map(int, row)))}"
            for name, row in self.computed.items()
        )
        model, layers = json.dumps(self.model), json.dumps(dict(self.layers))
        return (
            f'{{\n  "model": {model},\n  "layers": {layers},\n'
            f'  "steps": {self.steps},\n  "computed": {{\n{rows}\n  }}\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> SmoothCacheSchedule:
        """Read what `to_json` wrote, or a file of the authors: types and 0/1 lists.

        Raises:
            PolicyError: If it is neither.
        """
        try:
            read = json.loads(text)
        except ValueError as error:
            raise PolicyError(f"the schedule is not JSON: {error}") from error
        if not isinstance(read, dict):
            raise PolicyError("the schedule is not a JSON object")
        if "computed" not in read:
            return cls(_rows(read))
        schedule = cls(
            _rows(read["computed"]), str(read.get("model", "")), _counts(read)
        )
        if read.get("steps", schedule.steps) != schedule.steps:
            raise PolicyError(
                f"the schedule says {read['steps']} steps and lists {schedule.steps}"
            )
        return schedule

    def check_model(self, model: str, layers: Mapping[str, int]) -> None:
        """Refuse a model that the schedule was not made for.

        Args:
            model: Name of the model's class.
            layers: By type, how many layers it has.

        Raises:
            PolicyError: If the class or the number of layers is another.
        """
        if self.model and model != self.model:
            raise PolicyError(
                f"the schedule was made for {self.model} and this model is {model}: "
                "calibrate again"
            )
        for name, count in self.layers.items():
            if layers.get(name, 0) != count:
                raise PolicyError(
                    f"the schedule was made for {count} layers of type {name} and this "
                    f"model has {layers.get(name, 0)}: calibrate again"
                )


def _rows(read: Any) -> dict[str, tuple[Any, ...]]:
    rows = list(read.values()) if isinstance(read, dict) else [None]
    if not all(isinstance(row, list) for row in rows):
        raise PolicyError(
            "a schedule lists one 0 or 1 per step for each type of layer: "
            '{"attn1": [1, 0, 1], "ff": [1, 1, 1]}'
        )
    return {name: tuple(row) for name, row in read.items()}


def _counts(read: dict[str, Any]) -> dict[str, int]:
    layers = read.get("layers", {})
    counts = list(layers.values()) if isinstance(layers, dict) else [None]
    if not all(isinstance(count, int) for count in counts):
        raise PolicyError("the schedule's layers are a number for each type of layer")
    return dict(layers)


@dataclass(frozen=True)
class Layers:
    """Select the layers of one type.

    Args:
        type: The type.
        schedule: What it is selected for; it has its say about the model.
    """

    type: str
    schedule: SmoothCacheSchedule

    @property
    def noun(self) -> str:
        """Layer."""
        return "layer"

    def candidates(self, analysis: Analysis) -> tuple[Region, ...]:
        """Every layer.

        Raises:
            PolicyError: If the schedule was made for another model.
        """
        layers = layers_of(analysis.regions)
        self.schedule.check_model(model_class(analysis), layers)
        return tuple(region for region in analysis.regions if region.kind in KINDS)

    def reject(self, region: Region) -> str | None:
        """Why the region is not selected, or None if it is."""
        own = layer_type(region)
        return None if own == self.type else f"is of type {own}, not {self.type}"


def smoothcache(schedule: SmoothCacheSchedule) -> tuple[Policy, ...]:
    """Policies that hold outputs by a schedule, one per type of layer.

    A model that the schedule was not made for is refused, and so is a loop that is
    known to have another number of steps.

    Raises:
        PolicyError: If a type of layer cannot name a policy.
    """
    return tuple(
        Policy(name, Layers(name, schedule), Mask(tuple(row), schedule.steps))
        for name, row in schedule.computed.items()
    )
