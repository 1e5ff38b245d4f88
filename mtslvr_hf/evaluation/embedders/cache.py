"""Cache of embeddings on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...audio.files import open_audio
from ...files import sha256_of, whole_file
from ...fingerprints import tensors_sha256
from ..pieces import Pieces

if TYPE_CHECKING:
    from .base import Embedder

logger = logging.getLogger(__name__)


def cached_embeddings(
    folder: str | Path,
    embedder: Embedder,
    audio: Sequence[Mapping[str, Any]],
    show_progress_bar: bool = False,
) -> dict[str, Tensor]:
    """Embeddings of `Embedder.embed`, read from a folder if present, otherwise computed and written there.

    The key of an entry is the embedder's fingerprint and the content of the audio files in order, with the cuts of
    `Pieces`, but not the code: after a change of code, use another folder. A damaged entry is computed again, with a
    warning.

    Args:
        folder: Folder of entries; created if missing.
        embedder, audio, show_progress_bar: See `Embedder.embed`.

    Raises:
        OSError: If the folder cannot be written, or a file cannot be read.
        BadClipError: If a row has no audio or cannot be decoded. A ValueError with the name of the row.
    """
    path = Path(folder) / f"{_key(embedder, audio)}.safetensors"
    if path.is_file():
        embeddings = _read(path)
        if embeddings is not None:
            return embeddings
        logger.warning("%s is damaged; its embeddings are computed again.", path)
    embeddings = embedder.embed(audio, show_progress_bar=show_progress_bar)
    # safetensors does not keep the order of names: they are numbers.
    numbered = {str(number): values.cpu().contiguous().clone() for number, values in enumerate(embeddings.values())}
    digest = tensors_sha256(zip(embeddings, numbered.values()))
    with whole_file(path) as temporary:  # other processes see a whole entry or none
        save_file(numbered, temporary, metadata={"names": json.dumps(list(embeddings)), "sha256": digest})
    return embeddings


def _read(path: Path) -> dict[str, Tensor] | None:
    """Embeddings of an entry, or None if it is damaged."""
    try:
        with safe_open(path, framework="pt") as entry:
            written = entry.metadata() or {}
            names = json.loads(written.get("names", "[]"))
            embeddings = {name: entry.get_tensor(str(number)) for number, name in enumerate(names)}
    except (SafetensorError, ValueError):  # ValueError: names that are not JSON
        return None
    return embeddings if written.get("sha256") == tensors_sha256(embeddings.items()) else None


def _key(embedder: Embedder, audio: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(embedder.fingerprint.encode())
    if isinstance(audio, Pieces):
        digest.update(audio.layout.encode())
        audio = audio.audio
    for index in range(len(audio)):
        with open_audio(audio[index]) as file:
            digest.update(sha256_of(file).encode())
    return digest.hexdigest()[:32]


__all__ = ["cached_embeddings"]
