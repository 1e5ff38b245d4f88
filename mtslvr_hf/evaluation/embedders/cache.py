"""Embeddings kept on disk, so that the same network embeds the same files once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...audio.files import open_audio
from ...files import whole_file

if TYPE_CHECKING:
    from .base import Embedder

logger = logging.getLogger(__name__)


def cached_embeddings(
    folder: str | Path,
    embedder: Embedder,
    audio: Sequence[Mapping[str, Any]],
    show_progress: bool = False,
) -> dict[str, Tensor]:
    """An embedder's embeddings of audio from a folder of earlier ones, or computed and written there.

    An entry belongs to the embedder's fingerprint and to the audio's content in its order. What changes the code alone
    needs another folder. An entry that is damaged is computed again, with a warning.

    Args:
        folder: Made if it does not exist.
        embedder: What embeds.
        audio: N undecoded rows, `{"bytes", "path"}`.
        show_progress: Whether to show the embedder's progress bar.

    Returns:
        As `Embedder.embed`.

    Raises:
        OSError: If the folder cannot be written, or a file cannot be read.
        BadClipError: A ValueError that names the row that has no audio, or cannot be decoded.
    """
    path = Path(folder) / f"{_key(embedder, audio)}.safetensors"
    if path.is_file():
        embeddings = _read(path)
        if embeddings is not None:
            return embeddings
        logger.warning("%s is damaged; its embeddings are computed again.", path)
    embeddings = embedder.embed(audio, show_progress=show_progress)
    # Tensors are numbered: safetensors does not keep their order.
    numbered = {str(number): values.cpu().contiguous().clone() for number, values in enumerate(embeddings.values())}
    names = json.dumps(list(embeddings))
    with whole_file(path) as temporary:  # another process sees the whole entry or none
        save_file(numbered, temporary, metadata={"names": names, "sha256": _digest(names, list(numbered.values()))})
    return embeddings


def _read(path: Path) -> dict[str, Tensor] | None:
    """The entry's embeddings, or None if they are not what was written."""
    try:
        with safe_open(path, framework="pt") as entry:
            written = entry.metadata() or {}
            names = written.get("names", "[]")
            values = [entry.get_tensor(str(number)) for number in range(len(entry.keys()))]
    except SafetensorError:
        return None
    if written.get("sha256") != _digest(names, values):
        return None
    return dict(zip(json.loads(names), values))


def _digest(names: str, embeddings: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(names.encode())
    for values in embeddings:
        digest.update(values.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _key(embedder: Embedder, audio: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(embedder.fingerprint.encode())
    for index in range(len(audio)):
        with open_audio(audio[index]) as file:
            digest.update(_content(file))
    return digest.hexdigest()[:32]


def _content(file: Any) -> bytes:
    """Sha256 of a file, a mebibyte at a time."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.digest()


__all__ = ["cached_embeddings"]
