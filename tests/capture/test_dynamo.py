"""A graph of Dynamo's becomes the program that an export of the module is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from graphcache.capture.dynamo import GraphInputs, capture_graph
from graphcache.capture.frame import TracedFrame, arguments_of
from graphcache.capture.labels import scopes
from graphcache.program import InputKind, Program
from tests.models import TinyTransformer, tiny, tiny_inputs
from tests.programs import source
from tests.zoo import ZOO, first_inputs, make


def by_dynamo(
    module: nn.Module, inputs: dict[str, Any], dynamic: bool | None = None
) -> Program:
    """The source program of the graph that Dynamo makes of a call."""
    found: list[Program] = []

    def backend(graph: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        frame = TracedFrame.current()
        with torch._guards.tracing(None):
            inputs = GraphInputs.of(graph.graph, frame)
            found.append(capture_graph(graph, frame, inputs).program)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=backend, fullgraph=True)(**inputs)
    return found[-1]


@pytest.mark.parametrize("name", ["cogvideox", "wan", "pixart"])
def test_is_the_program_of_an_export(name: str) -> None:
    module, inputs = make(ZOO[name]), first_inputs(ZOO[name])
    assert str(by_dynamo(module, inputs)) == str(source(module, inputs))


def anyhow(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that names no argument."""

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Twice(TinyTransformer):
    """Calls its first block once more."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        """As its parent."""
        context = kwargs["encoder_hidden_states"]
        shift = torch.zeros_like(hidden_states)
        hidden_states = self.blocks[0](hidden_states, context, shift)
        return super().forward(hidden_states, **kwargs)


def shared_block() -> nn.Module:
    """One block in two places."""
    module = tiny(cross=True)
    module.blocks[1] = module.blocks[0]
    return module


def shared_weight() -> nn.Module:
    """One weight in two layers."""
    module = tiny(cross=True)
    module.blocks[1].ff.weight = module.blocks[0].ff.weight
    return module


@pytest.mark.parametrize(
    "build", [shared_block, shared_weight, lambda: Twice(cross=True).eval()]
)
def test_tells_apart_what_is_used_twice(build: Callable[[], nn.Module]) -> None:
    module = build()
    ours, theirs = by_dynamo(module, tiny_inputs()), source(module)
    assert str(ours) == str(theirs)
    keys = [
        list(dict.fromkeys(scope.key for n in p.graph.nodes for scope in scopes(n)))
        for p in (ours, theirs)
    ]
    assert keys[0] == keys[1]


class Nested(TinyTransformer):
    """Takes a tuple, and holds a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(8)

    def forward(
        self, hidden_states: Tensor, rotary: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Any:
        """f32[b, n, 8], (f32[8], f32[8])."""
        hidden_states = hidden_states * rotary[1] + self.table
        return super().forward(hidden_states, **kwargs)


def test_names_arguments_by_their_paths_and_all_else_as_weights() -> None:
    inputs = {**tiny_inputs(), "rotary": (torch.zeros(8), torch.ones(8))}
    program = by_dynamo(Nested().eval(), inputs)
    arguments = [e.target for e in program.inputs_of(InputKind.ARGUMENT)]
    # What Dynamo's graph does not read is no input of it.
    assert sorted(arguments) == ["hidden_states", "rotary.1", "timestep"]
    weights = [e.target for e in program.inputs_of(InputKind.WEIGHT)]
    assert [name for name in weights if name.endswith("table")]
    assert not program.inputs_of(InputKind.CONSTANT)


class Decorated(TinyTransformer):
    """Its forward is called through a function of any arguments."""

    @anyhow
    def forward(self, hidden_states: Tensor, timestep: Tensor, **kwargs: Any) -> Any:
        """As its parent."""
        return super().forward(hidden_states, timestep=timestep, **kwargs)


def test_looks_through_what_is_around_a_forward() -> None:
    module = Decorated(cross=True).eval()
    assert str(by_dynamo(module, tiny_inputs())) == str(source(module))


def test_what_a_function_was_called_with() -> None:
    def function(first: int, second: int, *rest: int, only: int, **more: int) -> Any:
        return locals()

    scope = function(1, 2, 3, 4, only=5, other=6)
    args, kwargs = arguments_of(function.__code__, scope)
    assert args == [1, 2, 3, 4]
    assert kwargs == {"only": 5, "other": 6}
