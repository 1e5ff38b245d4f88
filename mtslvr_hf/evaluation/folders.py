"""Labelled audio in folders: one folder per class, beside them an optional `manifest.csv`."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import AUDIO_SUFFIXES, find_audio_files


@dataclass(frozen=True)
class LabelledClips:
    """Audio files with their classes.

    Attributes:
        files: the audio files, in the order of their names.
        labels: the class of each, the name of its folder.
        groups: the group (speaker, recording session) of each, or None when it was not asked for.
    """

    files: list[Path]
    labels: list[str]
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.files)


def read_labelled_folder(
    folder: str | Path, classes: Sequence[str] | None = None, with_groups: bool = False
) -> LabelledClips:
    """Lists the audio files of a folder that has a folder per class.

    Args:
        folder: holds `<class>/<name>.flac` (or wav, mp3, ogg, ...), at any depth below the class.
        classes: the classes to read; all if None.
        with_groups: whether to read each clip's group from `manifest.csv`, columns `file` (path inside the folder) and
            `group`.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when there is no class with audio, a class asked for is absent or empty, or groups are asked for
            and the manifest lacks them. The message says what is there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected one with a folder of audio files per class")
    found = {
        path.name: find_audio_files(path) for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise ValueError(
            f"{folder} has no folder with audio files in it; expected one folder per class, "
            f"with files ending in {', '.join(sorted(AUDIO_SUFFIXES))}"
        )
    chosen = list(found) if classes is None else list(dict.fromkeys(classes))
    absent = [name for name in chosen if name not in found]
    if absent:
        raise ValueError(f"{folder} has no class {', '.join(absent)}; its classes are {', '.join(found)}")
    files = [path for name in chosen for path in found[name]]
    labels = [name for name in chosen for _ in found[name]]
    return LabelledClips(files, labels, _read_groups(folder, files) if with_groups else None)


def _read_groups(folder: Path, files: list[Path]) -> list[str]:
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise ValueError(f"group-disjoint tasks need {manifest} with columns file and group; there is no such file")
    with manifest.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        columns = rows.fieldnames or []
        if not {"file", "group"} <= set(columns):
            raise ValueError(f"{manifest} has the columns {', '.join(columns)}; expected file and group among them")
        groups = {row["file"]: row["group"] for row in rows}
    names = [path.relative_to(folder).as_posix() for path in files]
    unlisted = [name for name in names if not groups.get(name)]
    if unlisted:
        raise ValueError(
            f"{manifest} gives no group for {len(unlisted)} of {len(names)} files, the first {unlisted[0]}"
        )
    return [groups[name] for name in names]


__all__ = ["LabelledClips", "read_labelled_folder"]
