"""Labelled audio in folders: one folder per class."""

from dataclasses import dataclass
from pathlib import Path

from .sources import AUDIO_SUFFIXES, find_audio_files


@dataclass(frozen=True)
class LabelledClips:
    """Audio files with their classes.

    Attributes:
        files: the audio files, in the order of their names.
        labels: the class of each, the name of its folder.
    """

    files: list[Path]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.files)


def read_labelled_folder(folder: str | Path) -> LabelledClips:
    """Lists the audio files of a folder that has a folder per class.

    Args:
        folder: holds `<class>/<name>.flac` (or wav, mp3, ogg, ...), at any depth below the class.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when there is no class with audio.
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
    files = [path for paths in found.values() for path in paths]
    return LabelledClips(files, [name for name, paths in found.items() for _ in paths])


__all__ = ["LabelledClips", "read_labelled_folder"]
