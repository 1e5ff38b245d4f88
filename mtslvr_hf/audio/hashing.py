"""Checksums of encoded audio, and hashes of integers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from .errors import BadClipError, read_errors, summary
from .files import describe, open_audio

KEY_BYTES = 4096  # of a file's head and tail


def row_key(audio: Mapping[str, Any]) -> int:
    """64-bit checksum of a row's encoded file: of its length, head and tail (4 KiB each).

    Raises:
        BadClipError: If the file cannot be read.
    """
    try:
        with open_audio(audio) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(KEY_BYTES)
            file.seek(max(0, length - KEY_BYTES))
            tail = file.read(KEY_BYTES)
    except read_errors() as error:
        raise BadClipError("unreadable", f"{describe(audio)}: {type(error).__name__}: {summary(error)}") from error
    return _hash(b"%d," % length + head + tail)


def hash_integers(*values: int) -> int:
    """64-bit hash of integers, the same on every machine."""
    return _hash(b",".join(b"%d" % value for value in values))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


__all__ = ["hash_integers", "row_key"]
