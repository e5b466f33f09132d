"""accelerate's hook on a whole module: it runs around what is compiled."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from accelerate import cpu_offload_with_hook
from accelerate.hooks import (
    ModelHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from diffusers import PyramidAttentionBroadcastConfig
from torch import nn

import graphcache
from graphcache import CaptureError, never_reuse
from graphcache.runtime.offloading import is_wrapped
from tests.models import run_loop, same, tiny
from tests.runtime.policies import STATIC
from tests.zoo import ZOO, make


class Notes(ModelHook):
    """Notes what it is called with."""

    def __init__(self, name: str, seen: list[Any]) -> None:
        self.name = name
        self.seen = seen

    def init_hook(self, module: nn.Module) -> nn.Module:
        """When it is put on."""
        self.seen.append((self.name, "init"))
        return module

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """When it is taken off."""
        self.seen.append((self.name, "detach"))
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Before a call."""
        self.seen.append((self.name, module))
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """After a call."""
        self.seen.append((self.name, "after"))
        return output


def compiled(module: nn.Module, config: object = STATIC) -> Any:
    return graphcache.compile(module, config, backend="eager")


def test_a_hook_before_compiling_is_around_what_is_compiled() -> None:
    seen: list[Any] = []
    module = tiny()
    add_hook_to_module(module, Notes("a", seen))
    subject = compiled(module)
    assert is_wrapped(subject)
    # It is not initialised again, which would move the weights.
    assert seen == [("a", "init")]
    seen.clear()
    assert same(run_loop(subject, 4), run_loop(compiled(tiny()), 4))
    assert [entry[1] for entry in seen] == [subject, "after"] * 4
    assert subject.cache_stats.reused["attention"] > 0


def test_the_original_keeps_its_hook_and_stays_uncached() -> None:
    seen: list[Any] = []
    module = tiny()
    add_hook_to_module(module, Notes("a", seen))
    subject = compiled(module)
    seen.clear()
    assert same(run_loop(module, 4), run_loop(tiny(), 4))
    assert [entry[1] for entry in seen] == [module, "after"] * 4
    remove_hook_from_module(subject)
    assert is_wrapped(module)
    assert not is_wrapped(subject)


def test_a_hook_after_compiling_is_not_on_the_original() -> None:
    seen: list[Any] = []
    module = tiny()
    subject = compiled(module)
    add_hook_to_module(subject, Notes("a", seen))
    seen.clear()
    run_loop(module, 2)
    assert seen == []
    assert "_hf_hook" not in vars(module)
    run_loop(subject, 2)
    assert len(seen) == 4


def test_hooks_are_removed_added_and_given_back() -> None:
    seen: list[Any] = []
    module = tiny()
    add_hook_to_module(module, Notes("a", seen))
    subject = compiled(module, never_reuse())
    add_hook_to_module(subject, Notes("b", seen), append=True)
    assert isinstance(subject._hf_hook, SequentialHook)
    seen.clear()
    plain = run_loop(tiny(), 1)
    assert same(run_loop(subject, 1), plain)
    names = [entry[0] for entry in seen]
    assert names == ["a", "b", "a", "b"]
    assert graphcache.disable(subject) is module
    seen.clear()
    assert same(run_loop(module, 1), plain)
    assert [entry[0] for entry in seen] == names
    remove_hook_from_module(module)
    seen.clear()
    assert same(run_loop(module, 1), plain)
    assert seen == []
    # A hook that was removed from the drop-in is not on the original either.
    add_hook_to_module(module, Notes("a", seen))
    subject = compiled(module)
    remove_hook_from_module(subject)
    assert not hasattr(subject, "_hf_hook")
    assert not is_wrapped(graphcache.disable(subject))


def test_offloading_of_several_models() -> None:
    """Each hook sends the model before it away, which it knows as the original."""
    first, second = tiny(seed=0), tiny(seed=1)
    _, hook = cpu_offload_with_hook(first, "cpu")
    _, last = cpu_offload_with_hook(second, "cpu", hook)
    subjects = [compiled(module, never_reuse()) for module in (first, second)]
    for seed, subject in enumerate(subjects):
        assert same(run_loop(subject, 2), run_loop(tiny(seed=seed), 2))
    last.offload()
    for entry in (hook, last):
        entry.remove()
    for seed, subject in enumerate(subjects):
        assert same(run_loop(subject, 2), run_loop(tiny(seed=seed), 2))


def patched(module: Any) -> None:
    add_hook_to_module(module, Notes("a", []))
    inner = module.forward
    module.forward = functools.partial(lambda m, **kwargs: inner(**kwargs), module)


def hooked_beneath(module: Any) -> None:
    module.forward = functools.partial(type(module).forward, module)
    add_hook_to_module(module, Notes("a", []))


def of_a_part(module: Any) -> None:
    add_hook_to_module(module, Notes("a", []))
    add_hook_to_module(module.blocks[0], Notes("b", []))


@pytest.mark.parametrize("change", [patched, hooked_beneath, of_a_part])
def test_other_hooks_are_refused(change: Any) -> None:
    module = tiny()
    change(module)
    before = dict(vars(module))
    with pytest.raises(CaptureError, match=r"(TinyTransformer|blocks\.0) has "):
        compiled(module)
    assert vars(module) == before


def test_a_cache_of_diffusers_beneath_or_above_is_refused() -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 5
    )
    for order in (1, -1):
        module: Any = make(ZOO["flux"])
        changes = (
            lambda module=module: module.enable_cache(config),
            lambda module=module: add_hook_to_module(module, Notes("a", [])),
        )
        for change in changes[::order]:
            change()
        with pytest.raises(CaptureError, match="diffusers"):
            compiled(module)
