"""Atomic file writes, and the SHA-256 of a file."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name and renames it, so that nobody ever finds half of it."""
    temporary = temporary_name(path)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def temporary_name(path: Path) -> Path:
    """A hidden name beside a file's, of no other process."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")


def sha256_of(file: Path) -> str:
    """A file's checksum."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["TEMPORARY", "sha256_of", "temporary_name", "write_json", "write_whole"]
