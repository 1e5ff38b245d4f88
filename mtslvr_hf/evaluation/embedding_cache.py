"""Embeddings kept on disk, so that the same network embeds the same files once."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from .. import __version__
from ..encoding.embed_dataset import weights_sha256
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor

logger = logging.getLogger(__name__)


def cached_embeddings(
    folder: str | Path,
    model: PreTrainedModel,
    extractor: MTSLVRFeatureExtractor,
    files: Sequence[str | Path],
    compute: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Embeddings (files, D) from a folder of earlier ones, or computed and written there.

    An entry belongs to the model's weights and configuration (the tasks of its embedding among them), the extractor's
    settings, the files' content in their order, and this package's version. What changes the code alone needs another
    folder. An entry that is damaged is computed again, with a warning.

    Args:
        folder: made if it does not exist.
        model: what embeds.
        extractor: what prepares its input.
        files: the audio.
        compute: makes the embeddings.

    Raises:
        OSError: when the folder cannot be written, or a file cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(model, extractor, files)}.safetensors"
    if path.is_file():
        embeddings = _read(path)
        if embeddings is not None:
            return embeddings
        logger.warning("%s is damaged; its embeddings are computed again.", path)
    embeddings = compute().cpu().contiguous()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file({"embeddings": embeddings}, partial, metadata={"sha256": _digest(embeddings)})
    os.replace(partial, path)  # another process sees the whole entry or none
    return embeddings


def _read(path: Path) -> torch.Tensor | None:
    """The entry's embeddings, or None if they are not what was written."""
    try:
        with safe_open(path, framework="pt") as entry:
            embeddings = entry.get_tensor("embeddings")
            written = (entry.metadata() or {}).get("sha256")
    except SafetensorError:
        return None
    return embeddings if written == _digest(embeddings) else None


def _digest(embeddings: torch.Tensor) -> str:
    return hashlib.sha256(embeddings.view(torch.uint8).numpy().tobytes()).hexdigest()


def _key(model: PreTrainedModel, extractor: MTSLVRFeatureExtractor, files: Sequence[str | Path]) -> str:
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    settings = {
        "version": __version__,
        "weights": weights_sha256(model),
        "dtype": str(model.dtype),
        "config": config,
        "extractor": extractor.to_dict(),
        "files": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:32]


__all__ = ["cached_embeddings"]
