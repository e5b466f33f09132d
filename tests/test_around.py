"""What people do around the transformer, in random order.

Each generation of a compiled module equals that of a fresh object that was never
cached, or is refused by a `GraphCacheError`; nothing in between. Under a policy that
never reuses, the fresh object is a copy of the module. Under one that does, plain
Python over such a copy holds what the attention gave.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import GraphCacheError
from tests.models import TinyTransformer, timesteps, tiny_inputs

peft = pytest.importorskip("peft")

SEQUENCES = 20
MANY = 300
ACTIONS = 5


class Scaled:
    """A processor."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scale."""
        return hidden * self.scale


class Shifted(Scaled):
    """A processor of another class."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Shift."""
        return hidden + self.scale


class Processed(TinyTransformer):
    """A tiny transformer with a processor and adapters."""

    def __init__(self) -> None:
        super().__init__(depth=1)
        self._processor = Scaled(1.0)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        return_dict: bool = False,
    ) -> Any:
        """As `TinyTransformer`, processed."""
        (output,) = super().forward(hidden_states, encoder_hidden_states, timestep)
        return (self._processor(output),)


def make_module() -> nn.Module:
    torch.manual_seed(0)
    module = Processed().eval()
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    for name in ("a", "b"):
        peft.inject_adapter_in_model(config, module, adapter_name=name)
    return module.requires_grad_(False).eval()


@dataclass
class World:
    """A compiled module, and what is done to it.

    Attributes:
        module: The original, which shares everything with the compiled one.
        subject: The compiled one.
        every: Attention is computed each so many calls; 1 if it is never reused.
        tokens: Length of the latents.
        batch: How many there are.
        steps: Of a generation.
        request: Name of the request, or None for that of the thread.
        told: What was done, for the message.
    """

    module: Any
    subject: Any
    every: int = 1
    tokens: int = 3
    batch: int = 2
    steps: int = 4
    request: str | None = None
    told: list[str] = field(default_factory=list)

    @staticmethod
    def make() -> World:
        module = make_module()
        subject = graphcache.compile(module, graphcache.never_reuse(), backend="eager")
        return World(module, subject)

    def inputs(self) -> dict[str, Tensor]:
        dtype = next(self.module.parameters()).dtype
        inputs = tiny_inputs(tokens=self.tokens, batch=self.batch)
        return {name: value.to(dtype) for name, value in inputs.items()}

    def run(self, module: Any, steps: int, stop: int | None = None) -> list[Tensor]:
        """A loop of so many steps, aborted ahead of step `stop`."""
        inputs, outputs = self.inputs(), []
        with torch.no_grad():
            for timestep in timesteps(steps)[:stop]:
                inputs["timestep"] = torch.full_like(inputs["timestep"], timestep)
                (output,) = module(**inputs)
                outputs.append(output.clone())
                inputs["hidden_states"] = inputs["hidden_states"] - 0.1 * output
        return outputs

    def expected(self, stop: int | None = None) -> list[Tensor]:
        fresh = copy.deepcopy(self.module)
        held: list[Any] = []
        layer, index = fresh.blocks[0].attn1, iter(range(1000))
        own = layer.forward

        def holding(*args: Any, **kwargs: Any) -> Any:
            if next(index) % self.every == 0:
                held[:] = [own(*args, **kwargs)]
            return held[0]

        layer.forward = holding
        return self.run(fresh, self.steps, stop)

    def generate(self, stop: int | None = None) -> None:
        """Generate, and compare."""
        scope = (
            nullcontext()
            if self.request is None
            else self.subject.request(self.request)
        )
        with scope:
            try:
                outputs = self.run(self.subject, self.steps, stop)
            except GraphCacheError as error:
                self.told.append(f"refused: {error}")
                return
            finally:
                if stop is None:
                    self.subject._reset_stateful_cache()
        expected = self.expected(stop)
        for step, (ours, fresh) in enumerate(zip(outputs, expected, strict=True)):
            assert torch.equal(ours, fresh), (step, self.told)


def _layers(module: nn.Module) -> list[Any]:
    kind = peft.tuners.tuners_utils.BaseTunerLayer
    return [part for part in module.modules() if isinstance(part, kind)]


def _lora(world: World, dice: random.Random) -> str:
    names = dice.choice([["a"], ["b"], ["a", "b"], []])
    for layer in _layers(world.module):
        layer.enable_adapters(bool(names))
        if names:
            layer.set_adapter(names)
    world.module.requires_grad_(False)
    return f"adapters {names}"


def _size(world: World, dice: random.Random) -> str:
    world.tokens, world.batch = dice.choice([(3, 2), (5, 2), (3, 1)])
    return f"{world.tokens} tokens, batch {world.batch}"


def _steps(world: World, dice: random.Random) -> str:
    world.steps = dice.choice([3, 4, 5])
    return f"{world.steps} steps"


def _abort(world: World, dice: random.Random) -> str:
    stop = dice.randrange(1, world.steps)
    world.generate(stop)
    return f"aborted ahead of step {stop}"


def _config(world: World, dice: random.Random) -> str:
    world.every = dice.choice([1, 2, 3])
    attention = graphcache.Attention()
    world.subject.enable_cache(
        graphcache.never_reuse()
        if world.every == 1
        else graphcache.Policy("held", attention, graphcache.Interval(world.every))
    )
    return f"attention each {world.every}"


def _processor(world: World, dice: random.Random) -> str:
    kind, scale = dice.choice([(Scaled, 1.0), (Scaled, 1.5), (Shifted, 0.25)])
    if dice.random() < 0.5:
        world.module._processor = kind(scale)
    else:
        world.module._processor.scale = scale
    return f"{kind.__name__} {scale}"


def _request(world: World, dice: random.Random) -> str:
    world.request = dice.choice([None, "one", "two"])
    return f"request {world.request}"


def _dtype(world: World, dice: random.Random) -> str:
    dtype = dice.choice([torch.float32, torch.float32, torch.float64])
    world.subject.to(dtype)
    return f"to {dtype}"


ACTS: list[Callable[[World, random.Random], str]] = [
    *(_lora, _size, _steps, _abort, _config, _processor, _request, _dtype),
]


def play(world: World, seed: int) -> None:
    """One sequence: acts with a generation after each."""
    dice = random.Random(seed)
    for act in dice.choices(ACTS, k=ACTIONS):
        # Said ahead, so that a failure within an act names it.
        world.told.append(f"{act.__name__}, seed {seed}")
        world.told.append(act(world, dice))
        world.generate()


@pytest.mark.parametrize("part", range(2))
def test_random_sequences(part: int) -> None:
    """One module lives through them all: each begins in what the last one left."""
    world = World.make()
    for seed in range(part, SEQUENCES, 2):
        play(world, seed)
    assert any("refused" not in told for told in world.told)


@pytest.mark.large
@pytest.mark.parametrize("part", range(10))
def test_many_random_sequences(part: int) -> None:
    world = World.make()
    for seed in range(1000 + part, 1000 + MANY, 10):
        play(world, seed)
