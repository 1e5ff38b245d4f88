"""Embeddings of audio files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """An audio file's mono waveform, float32 (samples,), and its sampling rate in Hz.

    Raises:
        ValueError: when the file cannot be read as audio, or holds no sample.
    """
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)  # (samples, channels)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"cannot read {path} as audio: {error}") from error
    if not len(samples):
        raise ValueError(f"{path} holds no audio: it is 0 samples long")
    return samples.mean(1), rate


@torch.inference_mode()
def embed_files(
    model: PreTrainedModel,
    extractor: MTSLVRFeatureExtractor,
    files: Sequence[str | Path],
    batch_size: int = 16,
    show_progress: bool = True,
) -> dict[str, torch.Tensor]:
    """Embeds audio files with an MT-SLVR model, on the device the model is on.

    Files of like length go through the model together. The model is left in evaluation mode.

    Args:
        model: an `MTSLVRModel`, or one that returns the same embeddings.
        extractor: the model's feature extractor.
        files: paths of audio files, any format libsndfile reads, any rate.
        batch_size: files in a batch.
        show_progress: whether to show a progress bar on standard error.

    Returns:
        Float32 on the CPU, in the order of `files`: one entry for each of the model's tasks, (files, head size), and
        with more than one task `both` of them concatenated, (files, D). Tasks that share head and adapters have one
        embedding, so then there is only `both`.

    Raises:
        ValueError: when a file cannot be read as audio, or `files` is empty.
    """
    if not files:
        raise ValueError("there are no files to embed")
    model.eval()
    order = np.argsort([_seconds(path) for path in files], kind="stable")
    parts: dict[str, list[torch.Tensor]] = {}
    with tqdm(total=len(files), desc="embedding", unit="clip", disable=not show_progress) as bar:
        for start in range(0, len(files), batch_size):
            batch = [files[index] for index in order[start : start + batch_size]]
            for name, embeddings in _embed_batch(model, extractor, batch).items():
                parts.setdefault(name, []).append(embeddings)
            bar.update(len(batch))
    back = torch.from_numpy(np.argsort(order))
    return {name: torch.cat(part)[back] for name, part in parts.items()}


def _seconds(path: str | Path) -> float:
    try:
        return soundfile.info(str(path)).duration
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"cannot read {path} as audio: {error}") from error


def _embed_batch(
    model: PreTrainedModel, extractor: MTSLVRFeatureExtractor, files: list[str | Path]
) -> dict[str, torch.Tensor]:
    clips = []
    for path in files:
        waveform, rate = read_audio(path)
        clips.append({"array": waveform, "sampling_rate": rate})
    inputs = extractor(clips, return_tensors="pt").to(model.device)
    output = model(**inputs)
    config = model.config
    several = len(config.tasks) > 1
    one_for_all = several and config.shared_head and config.adapter_type == "none"
    embeddings = {} if one_for_all else {task: output[f"{task}_embeds"] for task in config.tasks}
    if several:
        embeddings["both"] = output.pooler_output
    return {name: value.float().cpu() for name, value in embeddings.items()}


__all__ = ["embed_files", "read_audio"]
