"""Audio column of encoded files, whose rows may name only files of their data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants

from ..audio.files import file_of

ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")  # protocols of a chain "zip://a.wav::hf://..."
REPOSITORY = "hf://datasets/"
OUTSIDE = (
    "the row names a file outside of its data set: move the file below the data set's folder, or allow such rows with "
    "allow_row_paths (--allow-row-paths) if you trust the data set"
)


@dataclass
class EncodedAudio(datasets.Audio):
    """Audio column of encoded files `{"bytes", "path"}`.

    Unlike `Audio(decode=False)`, it needs no torchcodec for rows that are not from Arrow tables (tar shards, folders).

    Attributes:
        roots: Folders and beginnings of URLs where files of rows without bytes must lie; relative paths start at the
            first folder. Other rows have no data, and `refused` says why. None allows all.
    """

    decode: bool = False
    roots: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.decode = self.roots is not None  # `datasets` then calls `decode_example`

    def encode_example(self, value: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """Row `{"bytes", "path"}` of a path, bytes or a dictionary."""
        if isinstance(value, str):
            return {"bytes": None, "path": value}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value), "path": None}
        return {"bytes": value.get("bytes"), "path": value.get("path")}

    def decode_example(self, value: dict[str, Any], token_per_repo_id: Any = None) -> dict[str, Any]:
        """Row with the path of its file, or with `refused` if that lies outside of `roots`."""
        if self.roots is None or value.get("bytes") is not None or not value.get("path"):
            return value
        path = confined_path(value["path"], self.roots)
        return {"bytes": b"", "path": value["path"], "refused": OUTSIDE} if path is None else {**value, "path": path}


def confined_path(path: str, roots: Iterable[str]) -> str | None:
    """Path or URL of a row, with relative paths below the first folder of `roots`; None if it lies in no root."""
    folders = [root for root in roots if "://" not in root]
    path = file_of(path)
    if "://" in path:
        *outer, last = path.split("::")
        if any(hop.partition("://")[0] not in ARCHIVES for hop in outer):
            return None
        if "://" in last:
            remote = [root for root in roots if "://" in root]
            return path if last.startswith(tuple(remote)) and ".." not in last.split("/") else None
        return path if _below(os.path.normpath(last), folders) else None
    full = os.path.normpath(os.path.join(folders[0], path) if folders else path)
    return full if _below(full, folders) else None


def _below(path: str, folders: Iterable[str]) -> bool:
    return os.path.isabs(path) and any(path.startswith(os.path.join(folder, "")) for folder in folders)


def folder_roots(folder: Path) -> tuple[str, ...]:
    """Roots of a local data set: its folder, also by its real path."""
    return tuple(dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))))


def repository_roots(name: str) -> tuple[str, ...]:
    """Roots of a data set on the Hub: its repository, and where `datasets` keeps its files."""
    cache = os.path.join(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    local = (cache, datasets.config.DOWNLOADED_DATASETS_PATH)
    return (*(os.path.abspath(folder) for folder in local), f"{REPOSITORY}{name}@", f"{REPOSITORY}{name}/")


def roots_of_files(files: Iterable[str]) -> tuple[str, ...]:
    """Roots of a data set of listed files: their folders, or their repositories on the Hub."""
    roots: dict[str, None] = {}
    for file in files:
        last = file.split("::")[-1]
        if last.startswith(REPOSITORY):
            owner, name = last.removeprefix(REPOSITORY).split("/")[:2]
            roots |= dict.fromkeys(repository_roots(f"{owner}/{name.partition('@')[0]}"))
        elif "://" in last:
            roots[last.rpartition("/")[0] + "/"] = None
        else:
            roots |= dict.fromkeys(folder_roots(Path(last).parent))
    return tuple(roots)


__all__ = ["EncodedAudio", "confined_path", "folder_roots", "repository_roots", "roots_of_files"]
