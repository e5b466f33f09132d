"""Fixtures of the engine tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from graphcache.engine import export, formats
from tests.engine import memory
from tests.engine.engines import compiled


@pytest.fixture(name="memory")
def _memory(monkeypatch: pytest.MonkeyPatch) -> type[memory.MemoryFormat]:
    """The format that keeps programs in this process, known by its name."""
    monkeypatch.setitem(formats._FORMATS, memory.NAME, memory.LOCATION)
    monkeypatch.setattr(memory.MemoryFormat, "opened", [])
    return memory.MemoryFormat


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of a tiny module under a static policy, not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "engine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(formats._FORMATS, memory.NAME, memory.LOCATION)
        return export(compiled(), path, backend=memory.NAME, progress=False)


@pytest.fixture
def engine_path(
    exported: Path, tmp_path: Path, memory: type[memory.MemoryFormat]
) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))
