"""Folders of files: visible files, names that are not UTF-8, splits and classes by the names of folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

logger = logging.getLogger(__name__)

SPLIT_OF_WORD = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
_SPLIT_WORD = re.compile(
    rf"(?:^|[{NON_WORDS_CHARS}])({'|'.join(SPLIT_OF_WORD)})(?=$|[{NON_WORDS_CHARS}])", re.IGNORECASE
)


def visible_files(folder: Path) -> list[Path]:
    """Regular files of a folder at any depth, sorted, without hidden ones and those in hidden folders.

    Links to folders are followed. Each folder is read once, at its real place if that lies in `folder`, so loops end;
    a warning names links to folders that are read already, and folders that cannot be read.
    """
    found: list[Path] = []
    pending, links = [folder], list[Path]()
    seen, repeated = {_identity(folder)}, list[Path]()
    while pending or links:
        here = pending.pop() if pending else links.pop(0)
        if here.is_symlink() and here != folder:
            if _identity(here) in seen:
                repeated.append(here)
                continue
            seen.add(_identity(here))
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            logger.warning("The folder %s cannot be read and is left out: %s", here, error.strerror)
            continue
        for entry in entries:
            path = here / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                found.append(path)
            elif entry.is_symlink():
                if entry.is_dir():
                    links.append(path)
            elif entry.is_dir() and _identity(path) not in seen:
                seen.add(_identity(path))
                pending.append(path)
    if repeated:
        some = ", ".join(map(str, repeated[:3]))
        logger.warning("%d links to folders that are read already are left out: %s", len(repeated), some)
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def readable_name(name: str) -> str:
    r"""Text of a file name; bytes that are not UTF-8 become `\xe9`. JSON, parquet and terminals can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_of(name: str) -> str | None:
    """Split that a name of a folder or file contains, by the words of `datasets`: "Train-clean" is "train"."""
    word = _SPLIT_WORD.search(name)
    return SPLIT_OF_WORD[word[1].lower()] if word else None


def choose_split(names: Sequence[str], split: str, root: Path) -> set[str]:
    """Names of folders or files that belong to a split: those equal to it but for capitals, or else by `split_of`.

    Raises:
        ValueError: If there is none.
    """
    wanted = split_of(split) or split
    chosen = {name for name in names if name.lower() == split.lower()}
    chosen = chosen or {name for name in names if split_of(name) == wanted}
    if not chosen:
        raise ValueError(f"{root} has no split {split!r}; it has: {', '.join(sorted(set(names)))}.")
    return chosen


@dataclass(frozen=True)
class FolderLayout:
    """Division of a folder's files into splits and classes.

    Splits are folders whose names contain a word of `datasets` for a split (train, training; validation, valid, val,
    dev; test, testing, eval, evaluation), in any case, between the ends of the name and `-._ 0-9`. All files must lie
    in such a folder at the same depth: `train/dog/a.wav`, `data/train/dog/a.wav` or `dog/train/a.wav`. Otherwise,
    there are no splits, and "train" may be a class.

    Attributes:
        root: The folder.
        files: Files in it.
    """

    root: Path
    files: list[Path]

    @cached_property
    def split_depth(self) -> int | None:
        """Number of folders above the folder of the split, or None without splits.

        Raises:
            ValueError: If folders of several splits lie beside other folders or files.
        """
        folders = [self._folders(file) for file in self.files]
        for depth in range(min(map(len, folders), default=0)):
            splits = {split_of(parts[depth]) for parts in folders}
            if None not in splits and (len(splits) > 1 or len({parts[:depth] for parts in folders}) == 1):
                return depth
        tops = {parts[0] if parts else "" for parts in folders}
        exact = sorted(top for top in tops if top.lower() in SPLIT_OF_WORD)
        if len({split_of(top) for top in exact}) > 1:
            others = ", ".join(sorted(top or "files without a folder" for top in tops.difference(exact))[:10])
            raise ValueError(
                f"{self.root} has folders of splits ({', '.join(exact)}) beside others ({others}): move the others "
                "out of it; or, if all are classes, move all into one folder named train."
            )
        return None

    def splits(self) -> list[str]:
        """Names of the folders of splits, sorted."""
        depth = self.split_depth
        return [] if depth is None else sorted({self._folders(file)[depth] for file in self.files})

    def files_of(self, split: str) -> list[Path]:
        """Files of a split; without splits, all are "train".

        Raises:
            ValueError: If there is no such split.
        """
        depth = self.split_depth
        if depth is not None:
            chosen = choose_split(self.splits(), split, self.root)
            return [file for file in self.files if self._folders(file)[depth] in chosen]
        if split != "train":
            raise ValueError(
                f"{self.root} is not divided into splits, so there is no {split!r}; all of it is 'train'."
            )
        return self.files

    def split_folder(self, file: Path) -> Path:
        """Folder of a file's split, or the root without splits."""
        depth = self.split_depth
        return self.root if depth is None else self.root.joinpath(*self._folders(file)[: depth + 1])

    def name_of(self, file: Path) -> str:
        """Readable path of a file in the folder."""
        return readable_name(file.relative_to(self.root).as_posix())

    def class_of(self, file: Path) -> str | None:
        """Class of a file: readable name of its first folder in the root, or in the folder of its split; or None."""
        parts, depth = self._folders(file), self.split_depth
        if depth is not None:
            parts = parts[depth + 1 :] if self._one_place else parts[:depth] + parts[depth + 1 :]
        return readable_name(parts[0]) if parts else None

    @cached_property
    def _one_place(self) -> bool:
        """True if the folders of all splits lie in one folder."""
        return len({self._folders(file)[: self.split_depth] for file in self.files}) == 1

    def _folders(self, file: Path) -> tuple[str, ...]:
        return file.relative_to(self.root).parts[:-1]


__all__ = ["FolderLayout", "choose_split", "readable_name", "split_of", "visible_files"]
