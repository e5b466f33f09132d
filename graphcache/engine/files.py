"""Files: a folder that is there whole or not at all, and whose contents are known."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from graphcache.engine.manifest import MANIFEST_FILE, FileRecord
from graphcache.errors import EngineError

_ADVICE = "copy the engine again, or export it anew"


@contextmanager
def written_whole(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `path` to write to, which takes its place when all is done.

    Whatever happens before, nothing at `path` changes: a process that dies leaves a
    hidden folder behind, and no engine.

    Args:
        path: Where the folder is to be in the end.
        overwrite: Whether an engine that is there may be replaced.

    Raises:
        EngineError: If something is there, or nothing can be written.
    """
    _refuse_existing(path, overwrite)
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent
        )
        folder = Path(made)
        folder.chmod(0o755)
        yield folder
        for file in folder.iterdir():
            _flush(file)
        _flush(folder)
        _replace(path, folder)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be written: {error}. Nothing was changed there"
        ) from error
    finally:
        if folder is not None and folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise EngineError(f"{path} exists: choose another path, or pass overwrite=True")
    if path.is_symlink() or not (path / MANIFEST_FILE).is_file():
        raise EngineError(
            f"{path} is no engine, and only an engine is overwritten: choose another "
            "path, or remove it yourself"
        )


def _replace(path: Path, folder: Path) -> None:
    if not path.exists():
        folder.rename(path)
        return
    old = folder.with_suffix(".old")
    path.rename(old)
    try:
        folder.rename(path)
    except BaseException:
        old.rename(path)
        raise
    # The new engine is in its place: what is left of the old one does no harm.
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def records(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file in a folder."""
    return {file.name: _record(file) for file in sorted(folder.iterdir())}


def _record(file: Path) -> FileRecord:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(file.stat().st_size, digest)


def read_manifest(path: Path) -> bytes:
    """The text of the manifest of an engine.

    Raises:
        EngineError: If there is no engine at `path`.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise EngineError(
            f"{path} {what}, and an engine is a folder: pass the path that export "
            "returned"
        )
    file = path / MANIFEST_FILE
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise EngineError(f"{file} is no regular file: {_ADVICE}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path} has no {MANIFEST_FILE} that can be read ({error.strerror}): it is "
            "no engine, or was not copied to its end. Copy it again, or export it anew"
        ) from error


def check(path: Path, expected: Mapping[str, FileRecord]) -> None:
    """Compare a folder with what its manifest says.

    Args:
        path: The engine.
        expected: By name; the manifest itself is not among them.

    Raises:
        EngineError: Naming a file that is missing, not expected, a link, or changed.
    """
    for name in expected:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise EngineError(
                f"{MANIFEST_FILE} names a file outside the engine, {name!r}: export it "
                "anew, and load nothing that you do not trust"
            )
    found = {file.name for file in path.iterdir()} - {MANIFEST_FILE}
    if missing := sorted(expected.keys() - found):
        raise EngineError(f"{path} lacks {', '.join(missing)}: {_ADVICE}")
    if extra := sorted(found - expected.keys()):
        raise EngineError(
            f"{path} holds what does not belong to the engine: {', '.join(extra)}. "
            "Remove it, or export anew"
        )
    for name, record in expected.items():
        _check_file(path / name, record)


def _check_file(file: Path, expected: FileRecord) -> None:
    if file.is_symlink() or not file.is_file():
        raise EngineError(f"{file} is no regular file: {_ADVICE}")
    size = file.stat().st_size
    if size != expected.bytes:
        raise EngineError(f"{file} has {size} of {expected.bytes} bytes: {_ADVICE}")
    if _record(file) != expected:
        raise EngineError(f"{file} is not what was exported, by its hash: {_ADVICE}")
