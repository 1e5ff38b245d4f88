"""Atomic file writes, regular files, the SHA-256 of a file, and the output folder of a run."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from transformers import TrainingArguments

TEMPORARY = ".tmp"


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, through to the disk."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Regular file opened for reading, without a buffer. A FIFO, socket or device could block for ever.

    Raises:
        OSError: If the path cannot be opened or is no regular file.
    """
    _check_regular(os.stat(path).st_mode, path)  # opening a device may already have an effect
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    try:
        _check_regular(os.fstat(file.fileno()).st_mode, path)  # it may have been replaced
    except OSError:
        file.close()
        raise
    return file


def _check_regular(mode: int, path: str | os.PathLike) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{os.fspath(path)} is a folder; expected a file.")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        kind = kinds.get(stat.S_IFMT(mode), "special")
        raise OSError(f"{os.fspath(path)} is {kind}; expected a regular file.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Temporary path that becomes `path` at the end of the context; an error removes it. Makes a missing folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Hidden path beside a file, unique among processes."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")


def sha256_of(file: Path | BinaryIO) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(file, "rb") if isinstance(file, Path) else nullcontext(file) as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def output_folder(args: TrainingArguments) -> Path:
    """Output folder of a run."""
    assert args.output_dir is not None  # TrainingArguments has a default
    return Path(args.output_dir)


__all__ = ["TEMPORARY", "output_folder", "sha256_of", "whole_file", "write_json", "write_whole"]
