"""torch.compile's own door: what graphcache.compile decides and gives, bit for bit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

import graphcache
from graphcache import Attention, BackendError, Interval, Policy, first_block_cache
from graphcache.backends.dynamo import statistics, thresholds
from graphcache.errors import GraphCacheError
from tests.doors import behind_dynamo, both, rows
from tests.models import TinyTransformer, run_loop, same, tiny, tiny_inputs
from tests.parity.settings import FIRST_BLOCK, LAYERS
from tests.zoo import ZOO, Clock, denoise, denoise_guided, denoise_in_turn, make

STEPS = 12
Config = Callable[[str, Clock], object]
CONFIGS: dict[str, Config] = {
    "pab": lambda name, clock: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=clock,
    ),
    "first_block": lambda name, clock: FirstBlockCacheConfig(FIRST_BLOCK[name]),
    "taylorseer": lambda name, clock: TaylorSeerCacheConfig(
        cache_interval=3,
        cache_identifiers=LAYERS[name],
        taylor_factors_dtype=torch.float32,
    ),
    "fastercache": lambda name, clock: FasterCacheConfig(
        is_guidance_distilled=True,
        spatial_attention_timestep_skip_range=(-1, 901),
        current_timestep_callback=clock,
    ),
}
# Every model and every method once.
PAIRS = [
    ("pixart", "pab"),
    ("cogvideox", "fastercache"),
    pytest.param("flux", "first_block", marks=pytest.mark.slow),
    pytest.param("wan", "taylorseer", marks=pytest.mark.slow),
]
EVERY_SECOND = Policy("attention", Attention(), Interval(2))


def flat(outputs: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
    return [*outputs[0], *outputs[1]]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_decides_and_gives_what_graphcache_compile_does(name: str, method: str) -> None:
    clock, model = Clock(), ZOO[name]
    ours, theirs = both(
        lambda: make(model),
        lambda: CONFIGS[method](name, clock),
        lambda module: flat(denoise_in_turn(module, model, STEPS, clock=clock)),
    )
    # PixArt has no contexts of its own; graphcache.compile gives it some.
    named = name != "pixart"
    assert rows(ours, named=named) == rows(theirs, named=named)
    assert sum(ours.reused.values()) > 0
    assert sum(ours.computed.values()) > 0
    assert ours.captures == 1


@pytest.mark.slow
def test_predicts_guidance_in_a_batch() -> None:
    clock, model = Clock(), ZOO["cogvideox"]
    ours, theirs = both(
        lambda: make(model),
        lambda: FasterCacheConfig(
            tensor_format="BFCHW", current_timestep_callback=clock
        ),
        lambda module: denoise_guided(module, model, STEPS, clock=clock),
    )
    assert rows(ours) == rows(theirs)
    assert ours.reused["guidance"] > 0


@pytest.mark.slow
def test_hears_where_a_context_is_in_the_loop() -> None:
    """Of SeaCache, which asks for the noise level at every step."""
    model = ZOO["wan"]
    ours, theirs = both(
        lambda: make(model),
        lambda: SeaCacheConfig(threshold=0.4),
        lambda module: flat(denoise_in_turn(module, model, STEPS, placed=True)),
    )
    assert rows(ours) == rows(theirs)
    assert ours.reused["seacache"] > 0


@pytest.mark.parametrize("lowering", ["auto", "specialize", "conditional"])
def test_lowers_as_asked(lowering: str) -> None:
    both(
        lambda: tiny(cross=True),
        lambda: EVERY_SECOND,
        lambda module: run_loop(module, 5),
        lowering=lowering,
    )


def test_the_reference_interprets_it() -> None:
    both(
        tiny,
        lambda: EVERY_SECOND,
        lambda module: run_loop(module, 5),
        backend="reference",
    )


@pytest.mark.slow
def test_inductor_compiles_before_the_first_step_and_never_again() -> None:
    model = ZOO["cogvideox"]
    ours, _ = both(
        lambda: make(model),
        lambda: graphcache.pyramid_attention_broadcast(spatial=2),
        lambda module: denoise(module, model, 50),
        backend="inductor",
    )
    assert ours.graphs_compiled == 2
    assert ours.reused["spatial"] > 0


def test_is_listed_among_the_backends_of_torch() -> None:
    assert "graphcache" in torch.compiler.list_backends()


@pytest.mark.parametrize(
    "config", [EVERY_SECOND, graphcache.config_to_dict(EVERY_SECOND)], ids=type
)
def test_compiles_in_place(config: object) -> None:
    torch._dynamo.reset()
    module = tiny()
    module.compile(backend="graphcache", options={"config": config, "backend": "eager"})
    expected = run_loop(graphcache.compile(tiny(), EVERY_SECOND, backend="eager"), 4)
    assert same(run_loop(module, 4), expected)
    assert statistics(module).reused["attention"] == 4


def test_modules_of_one_class_share_nothing() -> None:
    """Dynamo would run one graph for all of them: their weights are its inputs."""
    torch._dynamo.reset()
    options = {"config": EVERY_SECOND, "backend": "eager"}
    doors = [
        torch.compile(tiny(seed), backend="graphcache", options=options)
        for seed in range(2)
    ]
    with torch.no_grad():
        for door in doors:
            door(**tiny_inputs(timestep=500.0))
        for seed, door in enumerate(doors):
            (output,) = door(**tiny_inputs(timestep=400.0))
            own = graphcache.compile(tiny(seed), EVERY_SECOND, backend="eager")
            own(**tiny_inputs(timestep=500.0))
            assert torch.equal(output, own(**tiny_inputs(timestep=400.0))[0])
    assert [statistics(door).reused["attention"] for door in doors] == [2, 2]


def test_two_policies_of_one_module_are_apart() -> None:
    torch._dynamo.reset()
    module = tiny()
    for every in (2, 3):
        policy = Policy("attention", Attention(), Interval(every))
        door = torch.compile(
            module,
            backend="graphcache",
            options={"config": policy, "backend": "eager"},
        )
        expected = graphcache.compile(tiny(), policy, backend="eager")
        assert same(run_loop(door, 7), run_loop(expected, 7))
        assert statistics(door).reused == expected.cache_stats.reused


def test_every_shape_has_a_graph_and_all_share_the_clock() -> None:
    door = behind_dynamo(tiny(), EVERY_SECOND)
    with torch.no_grad():
        for timestep in (900.0, 800.0, 700.0):
            for tokens in (3, 5, 7):
                door(**tiny_inputs(timestep=timestep, tokens=tokens))
    stats = statistics(door)
    streams = [record.stream for record in stats.steps]
    assert streams == ["call 0", "call 1", "call 2"] * 3
    assert [record.computed["attention"] for record in stats.steps] == (
        [True] * 3 + [False] * 3 + [True] * 3
    )
    assert stats.captures == counters["stats"]["unique_graphs"] == 3


def test_a_weight_that_is_written_or_replaced_is_seen() -> None:
    module = tiny()
    door = behind_dynamo(module, graphcache.never_reuse())
    with torch.no_grad():
        door(**tiny_inputs())
        module.blocks[0].ff.weight.mul_(2.0)
        module.blocks[1].ff.bias = nn.Parameter(torch.ones(8))
        assert torch.equal(door(**tiny_inputs())[0], module(**tiny_inputs())[0])
    assert statistics(door).captures == 1


def test_a_tensor_that_is_no_buffer_is_read_at_every_call() -> None:
    class Held(TinyTransformer):
        def __init__(self) -> None:
            super().__init__()
            self.tables = [torch.ones(8), torch.ones(8)]

        def forward(
            self, hidden_states: Tensor, timestep: Tensor, **kwargs: Any
        ) -> Any:
            hidden_states = hidden_states * self.tables[0] + self.tables[1]
            return super().forward(hidden_states, timestep=timestep, **kwargs)

    module = Held().eval()
    door = behind_dynamo(module, graphcache.never_reuse())
    with torch.no_grad():
        door(**tiny_inputs())
        module.tables[1].fill_(3.0)
        assert torch.equal(door(**tiny_inputs())[0], module(**tiny_inputs())[0])


def test_thresholds_are_set_at_run_time() -> None:
    door = behind_dynamo(tiny(depth=3), first_block_cache(0.0))
    run_loop(door, 6)
    assert not statistics(door).reused
    thresholds(door)["first_block"] = 1e9
    run_loop(door, 6)
    assert statistics(door).reused["first_block"] == 5
    assert statistics(door).captures == 1


def test_an_exception_begins_a_new_generation() -> None:
    def interrupted() -> float:
        if interrupted.armed:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return 500.0

    interrupted.armed = False  # type: ignore[attr-defined]
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=4, current_timestep_callback=interrupted
    )
    model = ZOO["cogvideox"]
    door = behind_dynamo(make(model), config)
    denoise(door, model, 1)
    interrupted.armed = True  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        denoise(door, model, 1)
    assert statistics(door).resets >= 1


def test_keeps_no_module_alive() -> None:
    module = tiny()
    run_loop(behind_dynamo(module, EVERY_SECOND), 2)
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


class Breaking(TinyTransformer):
    """Asks for a value of the latents."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        """Twice the latents if they are positive."""
        if hidden_states.sum() > 0:
            hidden_states = hidden_states * 2
        return super().forward(hidden_states, **kwargs)


class Writing(TinyTransformer):
    """Writes to the latents."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        """The same latents, moved."""
        hidden_states.add_(1.0)
        return super().forward(hidden_states, **kwargs)


def call_through(module: nn.Module) -> Callable[..., Any]:
    """A function that calls a module."""
    return lambda **kwargs: module(**kwargs)


OPTIONS: dict[str, Any] = {"config": EVERY_SECOND, "backend": "eager"}
REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "mode": (tiny, {"mode": "max-autotune"}, "give its options instead"),
    "no options": (tiny, {}, "needs a policy"),
    "an unknown option": (
        tiny,
        {"options": {**OPTIONS, "max_autotune": True}},
        "no option max_autotune: it knows config",
    ),
    "an unknown lowering": (
        tiny,
        {"options": {**OPTIONS, "lowering": "fast"}},
        "unknown lowering 'fast'",
    ),
    "an unknown backend": (
        tiny,
        {"options": {**OPTIONS, "backend": "fast"}},
        "unknown backend 'fast'",
    ),
    "a policy that matches nothing": (
        tiny,
        {
            "options": {
                **OPTIONS,
                "config": Policy("c", Attention(("cross",)), Interval(2)),
            }
        },
        "policy c matches none of the 2 attention",
    ),
    "training": (lambda: tiny().train(), {"options": OPTIONS}, "in training mode"),
    "a broken graph": (
        lambda: Breaking().eval(),
        {"options": OPTIONS},
        r"broke the graph at .*test_dynamo.py:\d+: .*fullgraph=True",
    ),
    "a write": (
        lambda: Writing().eval(),
        {"options": OPTIONS},
        "writes to hidden_states",
    ),
    "a function": (
        lambda: call_through(tiny()),
        {"options": OPTIONS},
        "no call of a module: compile the transformer",
    ),
    "numbers left open": (
        tiny,
        {"options": OPTIONS, "dynamic": True},
        "pass dynamic=False",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str) -> None:
    subject, options, message = REFUSED[what]
    torch._dynamo.reset()
    door = torch.compile(subject(), backend="graphcache", **options)
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match=message) as error:
        door(**tiny_inputs())
    assert isinstance(error.value.inner_exception, GraphCacheError)


def test_refuses_gradients() -> None:
    door = behind_dynamo(tiny(), EVERY_SECOND)
    with pytest.raises(BackendCompilerFailed, match=r"inside torch\.no_grad"):
        door(**tiny_inputs())


def test_refuses_hooks_below_the_root() -> None:
    module = tiny()
    module.blocks[0].register_forward_hook(lambda *_: None)
    door = behind_dynamo(module, EVERY_SECOND)
    with (
        torch.no_grad(),
        pytest.raises(
            BackendCompilerFailed, match=r"blocks\.0 has a torch forward hook"
        ),
    ):
        door(**tiny_inputs())


def test_there_are_no_statistics_of_what_was_not_called() -> None:
    door = behind_dynamo(tiny(), EVERY_SECOND)
    with pytest.raises(BackendError, match="at the first call"):
        statistics(door)
