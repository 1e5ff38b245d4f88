"""Debian packages: download, unpacking, and the audio files in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from mtslvr_hf.data import AUDIO_SUFFIXES
from mtslvr_hf.files import TEMPORARY

ZIP_SUFFIXES = frozenset((".pk3", ".zip"))
MAGIC = (b"OggS", b"RIFF", b"fLaC")  # of files without a suffix


class AudioFile(NamedTuple):
    """Audio file of a package: its path, where a zip archive counts as a folder, and a function that reads it."""

    path: str
    read: Callable[[], bytes]


class UnpackedPackage(NamedTuple):
    """Unpacked package: name, version and folder."""

    name: str
    version: str
    folder: Path

    def audio_files(self) -> list[AudioFile]:
        """Audio files by suffix or, without one, by their first bytes; those in zip archives too; sorted by path."""
        return sorted(self._audio_files(), key=lambda file: file.path)

    def text(self, path: str) -> str:
        """Text of a file of the package.

        Raises:
            SystemExit: If the package does not have the file.
        """
        try:
            return (self.folder / path).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise SystemExit(f"{self.name} {self.version} has no readable file {path} ({error.strerror}).") from error

    def _audio_files(self) -> Iterator[AudioFile]:
        for file in self.folder.rglob("*"):
            path = file.relative_to(self.folder).as_posix()
            if file.is_symlink() or not file.is_file():
                continue
            if file.suffix.lower() in AUDIO_SUFFIXES or (not file.suffix and _first_bytes(file) in MAGIC):
                yield AudioFile(path, file.read_bytes)
            elif file.suffix.lower() in ZIP_SUFFIXES and zipfile.is_zipfile(file):
                archive = zipfile.ZipFile(file)  # stays open as long as one of its files is used
                for name in archive.namelist():
                    if PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES:
                        yield AudioFile(f"{path}/{name}", partial(archive.read, name))


def _first_bytes(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(4)


def check_available(names: Sequence[str], downloads: Path) -> None:
    """Checks that apt knows all packages that are not in the folder of downloads.

    Raises:
        SystemExit: If a program is missing, or apt does not know a package.
    """
    programs = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if programs:
        raise SystemExit(
            f"There is no {' and no '.join(programs)} on this machine: run this script on Debian or Ubuntu."
        )
    wanted = [name for name in names if find_download(name, downloads) is None]
    if not wanted:
        return
    done = _run(["apt-get", "--print-uris", "download", *wanted])
    unknown = re.findall(r"(?:Unable to locate package|Can't find a source to download) (\S+)", done.stderr)
    if done.returncode:
        what = f"apt does not have {', '.join(unknown)}" if unknown else f"apt-get failed: {done.stderr.strip()}"
        raise SystemExit(
            f"{what}. The table was made for Debian 12 (bookworm). Run `apt-get update` if the lists of packages are "
            "missing; or choose other packages with --packages."
        )


def find_download(name: str, downloads: Path) -> Path | None:
    """Downloaded file of a package, or None.

    Raises:
        SystemExit: If the folder holds several versions.
    """
    found = sorted(downloads.glob(f"{name}_*.deb"))
    if len(found) > 1:
        raise SystemExit(f"{downloads} holds {', '.join(file.name for file in found)}: remove all but one.")
    return found[0] if found else None


@contextmanager
def unpacked_package(name: str, downloads: Path, scratch: Path) -> Iterator[UnpackedPackage]:
    """Context of a package that is unpacked in a hidden folder in `scratch`, and downloaded before if it is missing.

    Raises:
        SystemExit: If it cannot be downloaded or unpacked.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    file = find_download(name, downloads) or _download(name, downloads)
    version = unquote(file.name.split("_")[1])  # NAME_VERSION_ARCHITECTURE.deb, with %3a for a colon
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=TEMPORARY, dir=scratch) as folder:
        done = _run(["dpkg-deb", "--extract", str(file), folder])
        if done.returncode:
            raise SystemExit(f"{file} cannot be unpacked: {done.stderr.strip()}. Remove it, and it is fetched again.")
        yield UnpackedPackage(name, version, Path(folder))


def _download(name: str, downloads: Path) -> Path:
    """Downloads a package. It gets its place when it is complete, because apt-get leaves half a file."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=TEMPORARY, dir=downloads) as folder:
        done = _run(["apt-get", "--quiet", "download", name], Path(folder))
        files = list(Path(folder).glob("*.deb"))
        if done.returncode or len(files) != 1:
            raise SystemExit(
                f"{name} cannot be downloaded: {done.stderr.strip()}. The same command goes on from here."
            )
        return files[0].replace(downloads / files[0].name)


def _run(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


__all__ = ["AudioFile", "UnpackedPackage", "check_available", "find_download", "unpacked_package"]
