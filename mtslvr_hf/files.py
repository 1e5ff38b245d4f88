"""Atomic file writes, the SHA-256 of a file, and the output folder of a run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
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
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # a name that is not UTF-8 gets JSON's escapes


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, through to the disk."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Temporary path that becomes `path` at the end of the context; an error removes it. Makes a missing folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "no room on the disk; files that were written before are whole: make room and run the command again"
        raise OSError(error.errno, message, str(path)) from error
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
