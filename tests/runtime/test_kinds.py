"""Classes of drop-ins: they pass for the class they stand in for."""

from __future__ import annotations

import abc
import copy
import gc
import inspect
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig
from torch import nn

import graphcache
from graphcache import GraphCacheError, never_reuse
from graphcache.policy import Policy
from graphcache.runtime.kinds import DropInType, original_class
from tests.models import TinyTransformer, run_loop, same, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC
from tests.zoo import ZOO, first_inputs, make


def compiled(module: nn.Module, config: object = STATIC, **kwargs: Any) -> Any:
    return graphcache.compile(module, config, **{"backend": "eager", **kwargs})


def test_the_class_is_equal_to_the_original_and_to_nothing_else() -> None:
    subject, other = compiled(tiny()), compiled(tiny())
    kind = type(subject)
    assert kind is not TinyTransformer
    assert isinstance(kind, DropInType)
    assert original_class(kind) is original_class(TinyTransformer) is TinyTransformer
    for left, right in ((kind, TinyTransformer), (TinyTransformer, kind)):
        assert left == right
        assert left in (right,)
        assert left in {right}
        assert not left != right
    assert {kind, type(other)} == {TinyTransformer}
    for stranger in (nn.Module, graphcache.Policy, None, "TinyTransformer"):
        assert kind != stranger
        assert stranger != kind
    assert issubclass(kind, TinyTransformer)
    assert not issubclass(TinyTransformer, kind)
    assert not isinstance(tiny(), kind)


def test_what_the_class_makes_is_the_original() -> None:
    flux = make(ZOO["flux"])
    subject = compiled(flux)
    for made in (type(subject)(**flux.config), subject.from_config(flux.config)):
        assert type(made) is type(flux)
        made.eval().load_state_dict(flux.state_dict())
        inputs = first_inputs(ZOO["flux"])
        with torch.no_grad():
            assert torch.equal(made(**inputs)[0], flux(**inputs)[0])


class Abstract(TinyTransformer, metaclass=abc.ABCMeta):
    """A module whose class has a metaclass."""


def test_a_class_with_a_metaclass_of_its_own() -> None:
    module = Abstract().eval()
    subject = compiled(module, never_reuse())
    assert original_class(type(subject)) is Abstract
    assert isinstance(type(subject), abc.ABCMeta)
    assert same(run_loop(subject, 3), run_loop(module, 3))


def test_what_a_module_does_is_what_the_original_does() -> None:
    module = tiny()
    subject = compiled(module)
    assert dict(subject.named_modules()).keys() == dict(module.named_modules()).keys()
    parts = [id(part) for part in module.modules() if part is not module]
    assert [id(p) for p in subject.modules() if p is not subject] == parts
    seen: list[nn.Module] = []
    subject.apply(seen.append)
    assert [*map(id, seen[:-1])] == [*map(id, [p for p in _post(module)][:-1])]
    assert seen[-1] is subject
    subject.load_state_dict({k: v * 2 for k, v in module.state_dict().items()})
    assert torch.equal(module.time.weight, tiny().time.weight * 2)
    assert subject.to(torch.float64) is subject
    assert module.time.weight.dtype == torch.float64
    assert inspect.signature(type(subject).forward) == inspect.signature(
        TinyTransformer.forward
    )


def _post(module: nn.Module) -> list[nn.Module]:
    """The modules in the order of `apply`."""
    return [*(p for child in module.children() for p in _post(child)), module]


def test_the_module_is_left_as_it_was() -> None:
    module = tiny()
    before = dict(vars(module))
    subject = compiled(module)
    run_loop(subject, 3)
    assert vars(module) == before
    assert type(module) is TinyTransformer
    assert graphcache.disable(subject) is module
    assert vars(module) == before
    # It can be compiled anew.
    assert same(run_loop(compiled(module, never_reuse()), 3), run_loop(module, 3))


def test_a_dropped_module_is_freed() -> None:
    subject = compiled(tiny())
    run_loop(subject, 2)
    gone = weakref.ref(subject)
    del subject
    gc.collect()
    assert gone() is None


def saved(subject: Any, way: str) -> Any:
    if way == "pickle":
        return pickle.loads(pickle.dumps(subject))
    file = io.BytesIO()
    torch.save({"model": subject}, file)
    file.seek(0)
    return torch.load(file, weights_only=False)["model"]


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
@pytest.mark.parametrize("policy", [STATIC, DYNAMIC])
def test_what_is_pickled_is_compiled_anew(way: str, policy: Policy) -> None:
    subject = compiled(tiny(), never_reuse())
    subject.enable_cache(policy)
    subject.cache_thresholds.update(dict.fromkeys(subject.cache_thresholds, 0.2))
    expected = run_loop(subject, 9)
    twin = saved(subject, way)
    assert original_class(type(twin)) is TinyTransformer
    assert twin.time.weight is not subject.time.weight
    assert dict(twin.cache_thresholds) == dict(subject.cache_thresholds)
    assert same(run_loop(twin, 9), expected)
    subject.disable_cache()
    assert not saved(subject, way).is_cache_enabled


def test_a_shallow_copy_shares_the_weights() -> None:
    subject = compiled(tiny())
    expected = run_loop(subject, 6)
    twin = copy.copy(subject)
    assert twin.time is subject.time
    assert twin.cache_stats is not subject.cache_stats
    assert same(run_loop(twin, 6), expected)
    twin.marker = 1
    assert not hasattr(subject, "marker")


LAMBDA = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("config", {"config": LAMBDA}),
        ("config", {"config": [STATIC, LAMBDA]}),
        ("options", {"config": STATIC, "options": {"hook": lambda: None}}),
    ],
)
def test_what_cannot_be_pickled_is_named(name: str, how: dict[str, Any]) -> None:
    subject = graphcache.compile(tiny(), backend="eager", **how)
    for way in ("pickle", "torch.save"):
        with pytest.raises(GraphCacheError, match=rf"its {name} cannot \("):
            saved(subject, way)
    # A copy in this process needs none of it.
    assert original_class(type(copy.deepcopy(subject))) is TinyTransformer


def test_a_config_that_holds_the_module_is_pickled() -> None:
    """The callback leads back to what is being pickled."""
    module = tiny()
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=module.extra_repr,
    )
    twin = saved(compiled(module, config), "pickle")
    assert same(run_loop(twin, 0), [])
    assert twin._graphcache_recipe.config.current_timestep_callback() == ""


def test_hooks_are_neither_copied_nor_pickled() -> None:
    subject = compiled(tiny())
    subject.forward = lambda **kwargs: "hooked"
    assert subject(**tiny_inputs()) == "hooked"
    for twin in (copy.deepcopy(subject), copy.copy(subject), saved(subject, "pickle")):
        assert same(run_loop(twin, 3), run_loop(compiled(tiny()), 3))
    with pytest.raises(GraphCacheError, match="was replaced after it was compiled"):
        graphcache.disable(subject)
    del subject.forward
    with pytest.raises(AttributeError):
        del subject.forward
    assert same(run_loop(subject, 3), run_loop(compiled(tiny()), 3))
