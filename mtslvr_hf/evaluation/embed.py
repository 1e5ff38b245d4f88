"""Embeddings of audio files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data import decode_clip
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor


def read_audio(path: str | Path, sampling_rate: int = 16_000) -> np.ndarray:
    """An audio file's whole waveform: mono, float32 (samples,), at `sampling_rate` Hz, not normalised.

    Raises:
        BadClip: A ValueError that names the file, when it is missing, not audio, cut off, empty, silent or not finite.
    """
    return decode_clip({"bytes": None, "path": str(path)}, sampling_rate=sampling_rate)


@torch.inference_mode()
def embed_files(
    model: PreTrainedModel,
    extractor: MTSLVRFeatureExtractor,
    files: Sequence[str | Path],
    batch_size: int = 16,
    show_progress: bool = True,
) -> dict[str, torch.Tensor]:
    """Embeds audio files with an MT-SLVR model, on the device the model is on.

    Files of like size, so of like length, go through the model together. The model is left in evaluation mode.

    Args:
        model: an `MTSLVRModel`, or one that returns the same embeddings.
        extractor: the model's feature extractor.
        files: paths of audio files, in any format and rate that pre-training reads.
        batch_size: files in a batch.
        show_progress: whether to show a progress bar on standard error.

    Returns:
        Float32 on the CPU, in the order of `files`: one entry for each of the model's tasks, (files, head size), and
        with more than one task `both` of them concatenated, (files, D). Tasks that share head and adapters have one
        embedding, so then there is only `both`.

    Raises:
        ValueError: when a file cannot be read as audio, `files` is empty, or `batch_size` is below 1.
    """
    if not files:
        raise ValueError("there are no files to embed")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    model.eval()
    order = np.argsort([os.path.getsize(path) for path in files], kind="stable")
    parts: dict[str, list[torch.Tensor]] = {}
    with tqdm(total=len(files), desc="embedding", unit="clip", disable=not show_progress) as bar:
        for start in range(0, len(files), batch_size):
            batch = [files[index] for index in order[start : start + batch_size]]
            for name, embeddings in _embed_batch(model, extractor, batch).items():
                parts.setdefault(name, []).append(embeddings)
            bar.update(len(batch))
    back = torch.from_numpy(np.argsort(order))
    return {name: torch.cat(part)[back] for name, part in parts.items()}


def _embed_batch(
    model: PreTrainedModel, extractor: MTSLVRFeatureExtractor, files: list[str | Path]
) -> dict[str, torch.Tensor]:
    clips = [read_audio(path, extractor.sampling_rate) for path in files]
    inputs = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt").to(model.device)
    output = model(**inputs)
    config = model.config
    several = len(config.tasks) > 1
    one_for_all = several and config.shared_head and config.adapter_type == "none"
    embeddings = {} if one_for_all else {task: output[f"{task}_embeds"] for task in config.tasks}
    if several:
        embeddings["both"] = output.pooler_output
    return {name: value.float().cpu() for name, value in embeddings.items()}


__all__ = ["embed_files", "read_audio"]
