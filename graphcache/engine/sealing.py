"""Sealing: the manifest as text whose last line says that nothing in it has changed."""

from __future__ import annotations

import hashlib

import msgspec

from graphcache.engine.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest
from graphcache.errors import EngineError


def encode(manifest: Manifest) -> bytes:
    """The text of a manifest; its last line is the SHA-256 of those before."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    return text + seal(text)


def seal(text: bytes) -> bytes:
    """The last line for what comes before it."""
    return f"sha256 {hashlib.sha256(text).hexdigest()}\n".encode()


def decode(text: bytes) -> Manifest:
    """A manifest from its text.

    Raises:
        EngineError: If it is damaged, or of another format.
    """
    cut = text.rfind(b"\n", 0, -1) + 1
    body, last = text[:cut], text[cut:]
    if last != seal(body):
        raise EngineError(
            f"{MANIFEST_FILE} is damaged: it does not match the hash in its last line. "
            "Copy the engine again, or export it anew"
        )
    try:
        version = msgspec.json.decode(body, type=_Versioned).format
        if version != FORMAT_VERSION:
            raise EngineError(
                f"the engine has format {version}, and this graphcache reads "
                f"{FORMAT_VERSION}: {_advice(version)}"
            )
        return msgspec.json.decode(body, type=Manifest)
    except msgspec.MsgspecError as error:
        raise EngineError(
            f"{MANIFEST_FILE} is not what graphcache writes ({error}): export anew"
        ) from error


class _Versioned(msgspec.Struct):
    format: int


def _advice(version: int) -> str:
    if version > FORMAT_VERSION:
        return "install a newer graphcache"
    return "export it anew"
