"""Files of a run's data: their fingerprint, and the decoders that they need."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from ..audio.errors import read_errors
from ..data.local import TORCHCODEC_SUFFIXES, find_audio_files, local_path, look_into
from ..installation import install_hint

logger = logging.getLogger(__name__)

FOOTER_BYTES = 2**16  # parquet's footer has the statistics and offsets of all row groups
HUB_SECONDS = 10.0


class LocalFiles(NamedTuple):
    """Files of a data set on this machine."""

    root: Path
    kind: str  # as of `look_into`
    files: Sequence[Path]


def local_files(name: str, config: str | None = None, data_files: Sequence[str] | None = None) -> LocalFiles | None:
    """Files of a data set; None if they are not on this machine, or reading them will say what is wrong."""
    if data_files is not None:
        if any("://" in file for file in data_files):
            return None
        found = [Path(file) for pattern in data_files for file in sorted(glob.glob(pattern, recursive=True))]
        parents = [file.absolute().parent for file in found]
        return LocalFiles(Path(os.path.commonpath(parents)), "dataset", found) if found else None
    path = local_path(name)
    if path is None:
        return None
    try:
        source = look_into(path, config)
    except ValueError:
        return None
    if path.is_file():
        return LocalFiles(path.parent, source.kind, [path])
    return LocalFiles(path, source.kind, source.files or find_audio_files(path, frozenset({".parquet"})))


def data_fingerprint(
    name: str, config: str | None = None, revision: str | None = None, data_files: Sequence[str] | None = None
) -> str | None:
    """Fingerprint of a data set: another one if a file is added, removed, grows, shrinks or has another end.

    On the Hub, it is the commit.

    Returns:
        None if the files cannot be looked at: URLs, or a Hub that does not answer.
    """
    local = local_files(name, config, data_files)
    if local is not None:
        return _of_files(local.root, local.files)
    if data_files is not None:
        return None
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except read_errors(HFValidationError):
        return None


def check_decoders(local: LocalFiles | None, max_bad_share: float) -> None:
    """Ends the program if more audio files than `max_bad_share` have suffixes of formats that need torchcodec.

    Fewer ones are a warning, and with torchcodec installed there is nothing to say.
    """
    if local is None or local.kind != "audio files" or find_spec("torchcodec") is not None:
        return
    count = sum(file.suffix.lower() in TORCHCODEC_SUFFIXES for file in local.files)
    text = (
        f"{count} of {len(local.files)} files in {local.root} need torchcodec ({install_hint('codecs')}), as m4a does."
    )
    if count > max_bad_share * len(local.files):
        sys.exit(f"{text} Install it, convert the files, or raise --max_bad_share.")
    if count:
        logger.warning("%s They are skipped.", text)


def _of_files(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = os.path.relpath(file, root)
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        if file.suffix == ".parquet":
            with open(file, "rb") as content:
                content.seek(max(0, size - FOOTER_BYTES))
                digest.update(content.read())
    return digest.hexdigest()


__all__ = ["LocalFiles", "check_decoders", "data_fingerprint", "local_files"]
