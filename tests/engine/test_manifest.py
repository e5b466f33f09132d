"""The manifest: nothing in it is taken on trust."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from graphcache import EngineError, pyramid_attention_broadcast
from graphcache.engine import load, machine
from graphcache.engine.files import records
from graphcache.engine.formats import WEIGHTS_FILE
from graphcache.engine.manifest import MANIFEST_FILE
from graphcache.engine.sealing import decode, encode, seal
from tests.engine.engines import compiled, engine_of
from tests.engine.memory import MemoryFormat
from tests.models import run_loop
from tests.runtime.policies import DYNAMIC

Json = dict[str, Any]


def read(path: Path) -> Json:
    """The manifest as JSON."""
    body = (path / MANIFEST_FILE).read_bytes()
    found: Json = json.loads(body[: body.rfind(b"sha256 ")])
    return found


def write(path: Path, manifest: Json) -> None:
    """A manifest with the hash that it ought to have."""
    body = json.dumps(manifest).encode() + b"\n"
    (path / MANIFEST_FILE).write_bytes(body + seal(body))


def changed(path: Path, change: Callable[[Json], Any]) -> None:
    """Change what an engine says, consistently."""
    manifest = read(path)
    change(manifest)
    write(path, manifest)


def refused(path: Path, message: str, memory: type[MemoryFormat]) -> None:
    """It is not loaded, and nothing of it was opened."""
    with pytest.raises(EngineError, match=message):
        load(path)
    assert memory.opened == []


def test_a_round_trip(exported: Path) -> None:
    text = (exported / MANIFEST_FILE).read_bytes()
    assert encode(decode(text)) == text
    assert json.dumps(read(exported))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_byte_that_changes_is_noticed(exported: Path, data: st.DataObject) -> None:
    text = bytearray((exported / MANIFEST_FILE).read_bytes())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EngineError, match=r"manifest\.json is damaged"):
        decode(bytes(text))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_any_other_length_is_noticed(exported: Path, data: st.DataObject) -> None:
    text = (exported / MANIFEST_FILE).read_bytes()
    cut = data.draw(st.integers(0, len(text) - 1))
    for broken in (text[:cut], text[cut + 1 :], text + text[cut:], text + b"\n"):
        with pytest.raises(EngineError, match=r"manifest\.json is damaged"):
            decode(broken)


OTHERS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "newer": (lambda m: m.update(format=99), "format 99.*install a newer graphcache"),
    "older": (lambda m: m.update(format=0), "format 0.*export it anew"),
    "newer_fields": (
        lambda m: m.update(format=99, novelty={}),
        "format 99.*install a newer",
    ),
    "fields": (lambda m: m.update(novelty={}), "not what graphcache writes.*novelty"),
    "no_format": (lambda m: m.pop("format"), "not what graphcache writes.*format"),
    "lacks": (lambda m: m.pop("captures"), "not what graphcache writes.*captures"),
    "type": (lambda m: m.update(programs=3), "not what graphcache writes.*programs"),
    "backend": (lambda m: m.update(backend="magic"), "unknown engine backend 'magic'"),
    "torch": (
        lambda m: m["target"].update(torch="1.13.1"),
        "torch 1.13.1, and this is.*Export it anew",
    ),
    "device": (
        lambda m: m["target"].update(device="cuda"),
        "built for cuda",
    ),
    "machine": (
        lambda m: m["target"].update(machine="riscv64 RVV"),
        "built for riscv64 RVV, and this is.*export",
    ),
    "above": (
        lambda m: m["files"].update({"../engine/x": m["files"][WEIGHTS_FILE]}),
        "outside the engine, '../engine/x'",
    ),
    "absolute": (
        lambda m: m["files"].update({"/etc/passwd": m["files"][WEIGHTS_FILE]}),
        "outside the engine, '/etc/passwd'",
    ),
    "dots": (
        lambda m: m["files"].update({"..": m["files"][WEIGHTS_FILE]}),
        r"outside the engine, '\.\.'",
    ),
    "unnamed": (
        lambda m: m["files"].pop(WEIGHTS_FILE),
        "does not belong to the engine: weights",
    ),
    "decision": (
        lambda m: m["captures"][0]["decisions"]["attention"].update(kind="Oracle"),
        "decides by Oracle",
    ),
    "no_loop": (lambda m: m.update(captures=[]), "it holds no loop"),
    "dtype": (lambda m: m["module"].update(dtype="float7"), "no dtype 'float7'"),
    "config": (lambda m: m["module"].update(config="{"), "config"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_engine_than_can_be_run(
    name: str, engine_path: Path, memory: type[MemoryFormat]
) -> None:
    change, message = OTHERS[name]
    changed(engine_path, change)
    refused(engine_path, message, memory)


def test_another_device_than_it_was_built_for(
    engine_path: Path, memory: type[MemoryFormat]
) -> None:
    with pytest.raises(
        EngineError, match=r"built for cpu and cannot run on (cuda|meta)"
    ):
        load(engine_path, device="meta")
    assert memory.opened == []


def test_a_bug_fix_of_torch_is_the_same_torch(
    engine_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = ".".join(torch.__version__.split(".")[:2])
    for version in (f"{release}.9", f"{release}.0a0+git123", f"{release}.1+cu130"):
        manifest = read(engine_path)
        manifest["target"]["torch"] = version
        write(engine_path, manifest)
        load(engine_path)


def test_a_portable_format_runs_anywhere(
    engine_path: Path, memory: type[MemoryFormat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "portable", True)
    changed(
        engine_path, lambda m: m["target"].update(torch="1.0", machine="riscv64 RVV")
    )
    run_loop(load(engine_path), 2)


def other_weights(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Other weights, and a manifest that knows their hash."""
    tensors = load_file(path / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, path / WEIGHTS_FILE)
    found = records(path)[WEIGHTS_FILE]
    said = {"bytes": found.bytes, "sha256": found.sha256}
    changed(path, lambda m: m["files"].update({WEIGHTS_FILE: said}))


WEIGHT = "weight.blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(WEIGHT), f"lacks {WEIGHT}"),
        (
            lambda t: t.update({WEIGHT: torch.zeros(8, 9)}),
            rf"{WEIGHT} is float32\[8, 9\] instead of float32\[8, 8\]",
        ),
        (lambda t: t.update({WEIGHT: t[WEIGHT].half()}), "is float16"),
    ],
)
def test_weights_of_another_model(
    change: Any, message: str, engine_path: Path, memory: type[MemoryFormat]
) -> None:
    other_weights(engine_path, change)
    refused(engine_path, message, memory)


def test_a_weights_file_that_is_none(
    engine_path: Path, memory: type[MemoryFormat]
) -> None:
    (engine_path / WEIGHTS_FILE).write_bytes(b"\xff" * 100)
    found = records(engine_path)[WEIGHTS_FILE]
    said = {"bytes": found.bytes, "sha256": found.sha256}
    changed(engine_path, lambda m: m["files"].update({WEIGHTS_FILE: said}))
    refused(engine_path, "cannot be read", memory)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is in JSON."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))


@pytest.fixture(scope="module", name="dynamic")
def _dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that has everything: scores, thresholds, lives, several policies."""
    from graphcache.engine import formats
    from tests.engine import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(formats._FORMATS, memory.NAME, memory.LOCATION)
        policies = (*pyramid_attention_broadcast(cross=2), DYNAMIC)
        subject = compiled(policies, cross=True)
        return engine_of(subject, tmp_path_factory.mktemp("dynamic")).path


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_manifest_that_was_forged(
    dynamic: Path, memory: type[MemoryFormat], data: st.DataObject
) -> None:
    honest = (dynamic / MANIFEST_FILE).read_bytes()
    manifest = read(dynamic)
    # What a format says of itself is its own business.
    known = [place for place in places(manifest) if place[0] != "details"]
    place = data.draw(st.sampled_from(known))
    owner = manifest
    for key in place[:-1]:
        owner = owner[key]
    kind = data.draw(st.sampled_from(["gone", "other", "swapped"]))
    if kind == "gone":
        del owner[place[-1]]
    elif kind == "other":
        owner[place[-1]] = data.draw(
            st.sampled_from([None, True, -1, 7, 0.5, "x", "", [], {}, ["x"], [[]]])
        )
    else:
        source = data.draw(st.sampled_from(known))
        value: Any = manifest
        for key in source:
            value = value[key]
        owner[place[-1]] = json.loads(json.dumps(value))
    write(dynamic, manifest)
    memory.opened.clear()
    try:
        load(dynamic)
    except EngineError:
        assert memory.opened == []
    finally:
        (dynamic / MANIFEST_FILE).write_bytes(honest)


def test_the_machine_is_this_one() -> None:
    target = machine.target_of(torch.device("cpu"))
    machine.check_target(target, torch.device("cpu"), portable=False)
    assert target.torch == torch.__version__
    assert torch.backends.cpu.get_cpu_capability() in target.machine
