"""An engine on disk is there whole or not at all, and whatever is wrong is told."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphcache import EngineError
from graphcache.engine import export, exporting, files, load
from graphcache.engine.formats import WEIGHTS_FILE
from graphcache.engine.manifest import MANIFEST_FILE
from tests.engine.engines import compiled
from tests.engine.memory import FILE, MemoryFormat
from tests.models import run_loop, same
from tests.runtime.policies import DYNAMIC

ROOT = Path(__file__).parents[2]


def content(path: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {file.name: file.read_bytes() for file in path.iterdir()}


def write(subject: Any, path: Path, **kwargs: Any) -> Path:
    return export(subject, path, backend="memory", progress=False, **kwargs)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def linked(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def renamed(file: Path) -> None:
    file.rename(file.with_suffix(".other"))


DAMAGE: list[Callable[[Path], None]] = [
    Path.unlink,
    truncated,
    flipped,
    linked,
    folder,
    pipe,
    renamed,
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(file.read_bytes() + b"\0"),
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [WEIGHTS_FILE, FILE, MANIFEST_FILE])
def test_damage_is_told_before_anything_is_opened(
    name: str,
    damage: Callable[[Path], None],
    engine_path: Path,
    memory: type[MemoryFormat],
) -> None:
    damage(engine_path / name)
    with pytest.raises(EngineError, match=name) as raised:
        load(engine_path)
    assert "again" in str(raised.value) or "anew" in str(raised.value)
    assert memory.opened == []


def test_a_file_that_does_not_belong_to_it(
    engine_path: Path, memory: type[MemoryFormat]
) -> None:
    (engine_path / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match=r"notes\.txt.*Remove it"):
        load(engine_path)
    assert memory.opened == []


def test_what_is_no_engine(tmp_path: Path, engine_path: Path) -> None:
    with pytest.raises(EngineError, match=r"does not exist.*engine is a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(EngineError, match=r"is a file.*engine is a folder"):
        load(engine_path / WEIGHTS_FILE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"has no manifest\.json"):
        load(tmp_path / "empty")


def test_a_link_to_an_engine_is_one(engine_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(engine_path)
    wanted = run_loop(load(engine_path), 3)
    assert same(run_loop(load(str(tmp_path / "link")), 3), wanted)


def test_weights_of_another_engine(
    engine_path: Path, tmp_path: Path, memory: type[MemoryFormat]
) -> None:
    other = write(compiled(DYNAMIC, cross=True), tmp_path / "other")
    shutil.copy(other / WEIGHTS_FILE, engine_path / WEIGHTS_FILE)
    with pytest.raises(EngineError, match=r"weights\.safetensors.*bytes"):
        load(engine_path)
    assert memory.opened == []


def test_nothing_is_unpickled(
    engine_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    for owner, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    run_loop(load(engine_path), 3)
    for data in content(engine_path).values():
        assert not data.startswith((b"\x80", b"PK"))


def test_an_existing_path(tmp_path: Path, memory: type[MemoryFormat]) -> None:
    subject = compiled()
    path = write(subject, tmp_path / "deep" / "engine")
    before = content(path)
    with pytest.raises(EngineError, match=r"exists.*overwrite=True"):
        write(subject, path)
    assert content(path) == before
    assert write(compiled(DYNAMIC), path, overwrite=True) == path
    assert "tail" in load(path).cache_thresholds
    assert [file.name for file in path.parent.iterdir()] == ["engine"]


def test_only_an_engine_is_overwritten(
    tmp_path: Path, engine_path: Path, memory: type[MemoryFormat]
) -> None:
    subject = compiled()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("all of it")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(engine_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "file", "link", "dangling"):
        for overwrite in (False, True):
            with pytest.raises(EngineError, match=r"exists|only an engine"):
                write(subject, tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "all of it"
    assert (tmp_path / "file").read_text() == "mine"
    load(tmp_path / "link")


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


STAGES: list[tuple[Any, str]] = [
    (exporting, "store_tensors"),
    (MemoryFormat, "write"),
    (exporting, "records"),
    (exporting, "encode"),
    (files, "_flush"),
    (Path, "rename"),
    (Path, "write_bytes"),
]


@pytest.mark.parametrize(("owner", "name"), STAGES)
@pytest.mark.parametrize(
    ("fail", "error"), [(full, EngineError), (interrupted, KeyboardInterrupt)]
)
def test_what_cannot_be_written_changes_nothing(
    owner: Any,
    name: str,
    fail: Callable[..., Any],
    error: type[BaseException],
    engine_path: Path,
    memory: type[MemoryFormat],
    small: Any,
) -> None:
    before = content(engine_path)
    around = sorted(engine_path.parent.iterdir())
    for path in (engine_path, engine_path.parent / "new"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(error) as raised:
                write(small, path, overwrite=True)
        if error is EngineError:
            assert "No space left" in str(raised.value)
            assert "Nothing was changed" in str(raised.value)
    assert content(engine_path) == before
    assert sorted(engine_path.parent.iterdir()) == around
    load(engine_path)


@pytest.fixture(scope="module", name="small")
def _small() -> Any:
    return compiled(DYNAMIC)


def test_a_swap_that_fails_midway_is_undone(
    engine_path: Path, memory: type[MemoryFormat], small: Any
) -> None:
    before = content(engine_path)
    rename = Path.rename

    def second(self: Path, target: Any) -> Path:
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", second)
        with pytest.raises(KeyboardInterrupt):
            write(small, engine_path, overwrite=True)
    assert content(engine_path) == before
    assert [file.name for file in engine_path.parent.iterdir()] == ["copy"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, memory: type[MemoryFormat], small: Any
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(EngineError, match=r"cannot be written.*Permission"):
        write(small, tmp_path / "closed" / "engine")


def test_a_parent_that_is_a_file(
    tmp_path: Path, memory: type[MemoryFormat], small: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EngineError, match="cannot be written"):
        write(small, tmp_path / "file" / "engine")


KILLED = """
import sys, time
from pathlib import Path
from graphcache.engine import export, formats
from tests.engine import memory
from tests.engine.engines import compiled

formats._FORMATS[memory.NAME] = memory.LOCATION

def stuck(self, job):
    (job.folder / "half.bin").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

memory.MemoryFormat.write = stuck
export(compiled(), sys.argv[1], backend=memory.NAME, overwrite=True, progress=False)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_the_old_engine(engine_path: Path) -> None:
    before = content(engine_path)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(engine_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert content(engine_path) == before
    run_loop(load(engine_path), 2)
    # What is left is no engine, and in nobody's way.
    (left,) = (file for file in engine_path.parent.iterdir() if file != engine_path)
    assert left.name.startswith(".copy.")
    with pytest.raises(EngineError, match="not copied to its end"):
        load(left)
