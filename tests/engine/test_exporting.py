"""Export: what there is to export, and what is refused."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphcache
from graphcache import BackendError, CaptureError, EngineError, first_block_cache
from graphcache.engine import export, load
from graphcache.engine.files import read_manifest
from graphcache.engine.formats import Job
from graphcache.engine.sealing import decode
from tests.engine.engines import compiled, engine_of, equal
from tests.engine.memory import NAME, MemoryFormat
from tests.models import run_loop, same, tiny, tiny_inputs
from tests.runtime.policies import DYNAMIC, STATIC

pytestmark = pytest.mark.usefixtures("memory")


def refused(subject: nn.Module, path: Path, message: str, **kwargs: Any) -> None:
    """It is not exported, and nothing is left behind."""
    options = {"backend": "memory", "progress": False, **kwargs}
    with pytest.raises(EngineError, match=message):
        export(subject, path / "engine", **options)
    assert list(path.iterdir()) == []


def test_what_is_not_compiled(tmp_path: Path) -> None:
    refused(tiny(), tmp_path, "TinyTransformer was not compiled")
    subject = graphcache.compile(tiny(), STATIC, backend="eager")
    refused(subject, tmp_path, "nothing was captured yet.*example_inputs")


def test_an_engine_is_not_exported_again(engine_path: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="EngineModule was not compiled"):
        export(load(engine_path), tmp_path / "engine", backend="memory")


def test_names_that_there_are_not(tmp_path: Path) -> None:
    subject = compiled()
    refused(subject, tmp_path, "unknown engine backend 'tvm': know", backend="tvm")
    refused(subject, tmp_path, "memory takes no options", options={"fast": True})
    with pytest.raises(BackendError, match="unknown lowering 'magic'"):
        export(subject, tmp_path / "e", backend="memory", lowering="magic")


def test_a_format_without_conditions(
    tmp_path: Path, memory: type[MemoryFormat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "conditions", False)
    subject = compiled(DYNAMIC, lowering="conditional")
    refused(subject, tmp_path, 'takes no conditions: pass lowering="auto"')
    path = export(
        subject, tmp_path / "e", backend="memory", lowering="auto", progress=False
    )
    assert same(run_loop(load(path), 6), run_loop(subject, 6))


def test_weights_are_those_of_now(tmp_path: Path) -> None:
    subject = compiled()
    with torch.no_grad():
        subject.blocks[0].ff.weight.mul_(2.0)
    engine = engine_of(subject, tmp_path)
    wanted = run_loop(subject, 4)
    assert same(run_loop(engine, 4), wanted)
    # From then on it has its own.
    with torch.no_grad():
        subject.blocks[0].ff.weight.zero_()
    assert same(run_loop(engine, 4), wanted)
    assert not same(run_loop(subject, 4), wanted)


def test_a_module_that_has_changed_since(tmp_path: Path) -> None:
    for change in (
        lambda module: module.to(torch.float64),
        lambda module: setattr(module.blocks[0], "gain", 2.0),
        lambda module: setattr(module.blocks[0], "ff", nn.Identity()),
    ):
        subject = compiled()
        change(subject)
        refused(subject, tmp_path, "nothing was captured yet of the module as it is")
    subject = compiled()
    subject.blocks[0].register_forward_hook(lambda *args: None)
    with pytest.raises(CaptureError, match="hook"):
        export(subject, tmp_path / "engine", backend="memory")


def test_a_state_that_came_back(tmp_path: Path) -> None:
    """The engine is of the module as it is, whatever was captured last."""
    subject = graphcache.compile(tiny(), STATIC, backend="eager")
    wanted = run_loop(subject, 4)
    subject.gain = 3.0
    run_loop(subject, 4)
    subject.gain = 1.0
    assert same(run_loop(engine_of(subject, tmp_path), 4), wanted)


def test_a_module_that_was_called(tmp_path: Path) -> None:
    subject = graphcache.compile(tiny(), STATIC, backend="eager")
    wanted = run_loop(subject, 4)
    assert same(run_loop(engine_of(subject, tmp_path), 4), wanted)


def test_the_name_of_every_program_says_when_it_runs(tmp_path: Path) -> None:
    subject = graphcache.compile(
        tiny(depth=2), [STATIC, first_block_cache(0.1)], backend="eager"
    )
    run_loop(subject, 1)
    run_loop(subject, 1, tokens=4)
    engine = engine_of(subject, tmp_path)
    names = set(engine.manifest.programs)
    assert "loop0_attention_compute_first_block_head" in names
    assert "loop1_attention_reuse_first_block_compute" in names
    assert all(name.isidentifier() for name in names)


class Odd(nn.Module):
    """Has weights that are laid out in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()
        shared = torch.randn(8, 8)
        self.register_buffer("whole", shared)
        self.register_buffer("flat", shared.view(-1))
        self.register_buffer("turned", shared.t())
        self.register_buffer("part", shared[2:4])
        self.register_buffer("spread", torch.randn(1, 8).expand(8, 8))
        self.register_buffer("empty", torch.empty(0, 8))
        self.register_buffer("phase", torch.randn(8, dtype=torch.complex64))
        self.register_buffer("on", torch.tensor([True, False] * 4))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Any:
        """The tiny module with something of each."""
        added = self.whole @ self.turned @ self.spread + self.flat.view(8, 8).t()
        added = added + torch.cat([self.part, self.empty]).sum() + self.phase.imag
        hidden_states = hidden_states @ torch.where(self.on, added, 0.1)
        return self.inner(hidden_states, hidden_states, timestep)


def test_weights_of_every_layout(tmp_path: Path) -> None:
    inputs = {
        "hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.full((2,), 500.0),
    }
    subject = graphcache.compile(
        Odd().eval(), STATIC, backend="eager", example_inputs=inputs
    )
    engine = engine_of(subject, tmp_path)
    with torch.no_grad():
        wanted, got = subject(**inputs), engine(**inputs)
    assert equal(got[0], wanted[0])
    (segment, *_) = engine._graphcache_runner.loops[0].loop.routes.values()
    weights: Any = segment.weights  # type: ignore[union-attr]
    own = subject.state_dict()
    for record in engine.manifest.stored:
        assert record.type.stride == own[record.target].stride()
    for weight in weights.read():
        assert weight.untyped_storage().data_ptr() % 64 == 0


class Shade(enum.Enum):
    """What no engine knows."""

    DARK = 1


class Shaded(nn.Module):
    """Has a default of the caller's own type."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, shade: Shade = Shade.DARK
    ) -> Any:
        """The tiny module."""
        return self.inner(hidden_states, hidden_states, timestep)


def test_a_default_that_nobody_can_make_again(tmp_path: Path) -> None:
    subject = graphcache.compile(Shaded().eval(), STATIC, backend="eager")
    with torch.no_grad():
        subject(torch.randn(2, 3, 8), torch.full((2,), 500.0))
    refused(subject, tmp_path, "the default of shade is a tests.*Shade")


def test_a_format_may_build_for_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: MemoryFormat, job: Job) -> dict[str, Any]:
        return {"device": "cuda"}

    monkeypatch.setattr(MemoryFormat, "write", write)
    path = export(compiled(), tmp_path / "x", backend=NAME, progress=False)
    assert decode(read_manifest(path)).target.device == "cuda"


def test_an_expanded_argument_may_be_another_later(tmp_path: Path) -> None:
    inputs = {**tiny_inputs(), "timestep": torch.tensor([500.0]).expand(2)}
    subject = graphcache.compile(tiny(), STATIC, backend="eager", example_inputs=inputs)
    path = export(subject, tmp_path / "x", backend=NAME, progress=False)
    programs = decode(read_manifest(path)).programs.values()
    strides = {
        given.type.stride
        for program in programs
        for given in program.inputs
        if given.target == "timestep"
    }
    assert strides == {(1,)}
