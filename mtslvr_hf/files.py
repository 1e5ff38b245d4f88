"""Atomic file writes, regular files, the SHA-256 of a file, and the output folder of a run."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from transformers import TrainingArguments

TEMPORARY = ".tmp"


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; numbers that are not finite, which JSON does not have, become null."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # a name that is not UTF-8 gets JSON's escapes


def _finite(content: Any) -> Any:
    """The same plain values with None for numbers that are NaN or infinite."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


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
    """Temporary path that becomes `path` at the end of the context; an error removes it. Makes a missing folder.

    The file has the permissions of the umask, whatever its writer gave it: safetensors writes for the owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "no room on the disk; files that were written before are whole: make room and run the command again"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Hidden path beside a file, unique among processes; with the start of its name, which may be of any length."""
    return path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}{TEMPORARY}")


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
