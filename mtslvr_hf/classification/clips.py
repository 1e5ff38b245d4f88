"""Decoded clips of labelled audio, for Trainer; and their embeddings, computed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..audio.hashing import hash_integers
from ..audio.recording import open_recording
from ..data import BadClip, SkippedRows
from ..data.labelled import LabelledAudio
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor

logger = logging.getLogger(__name__)


def read_waveform(audio: Mapping[str, Any], sampling_rate: int) -> np.ndarray:
    """All of an undecoded row `{"bytes", "path"}`: mono, (samples,) float32, not normalised. Silence is allowed.

    Raises:
        BadClip: If it is missing, no audio, cut off, empty or not finite; the message says which and names it.
    """
    with open_recording(audio) as recording:
        return np.concatenate(list(recording.blocks(sampling_rate)))


class ClipDataset(Dataset):
    """Decodes labelled audio, each clip when it is asked for.

    Args:
        data: The labelled audio.
        sampling_rate: Rate of the clips in Hz.
        max_seconds: Longer clips are cropped to this length; None leaves them whole.
        random_crops: Whether crops lie elsewhere each epoch; otherwise they are the middle.
        seed: Seed of the crops, which depend on it, on the epoch and on the row, and on nothing else.
    """

    def __init__(
        self,
        data: LabelledAudio,
        sampling_rate: int,
        max_seconds: float | None = None,
        random_crops: bool = False,
        seed: int = 0,
    ):
        self.data = data
        self.sampling_rate = sampling_rate
        self.max_seconds = max_seconds
        self.random_crops = random_crops
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that go on living see it change

    @property
    def epoch(self) -> int:
        """Epoch of the crops, shared with the workers."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`waveform` (samples,) float32, not normalised, and `label`.

        Raises:
            BadClip: If the audio cannot be used.
        """
        waveform = read_waveform(self.data.audio[index], self.sampling_rate)
        return {"waveform": self._crop(waveform, index), "label": self.data.target(index)}

    def _crop(self, waveform: np.ndarray, index: int) -> np.ndarray:
        if self.max_seconds is None or len(waveform) <= self.max_seconds * self.sampling_rate:
            return waveform
        samples = round(self.max_seconds * self.sampling_rate)
        slack = len(waveform) - samples
        start = hash_integers(self.seed, self.epoch, index) * (slack + 1) >> 64 if self.random_crops else slack // 2
        return waveform[start : start + samples]


class SetEpoch(TrainerCallback):
    """Tells a `ClipDataset` which epoch begins."""

    def __init__(self, dataset: ClipDataset):
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Trainer calls it, before it asks for the epoch's first clip."""
        self.dataset.epoch = int(state.epoch or 0)


class ClipCollator:
    """Batches of `ClipDataset` items, as an MT-SLVR model takes them.

    Args:
        extractor: The model's feature extractor.
    """

    def __init__(self, extractor: MTSLVRFeatureExtractor):
        self.extractor = extractor

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_values` and `attention_mask` (batch, samples), and `labels` (batch,) or (batch, classes)."""
        waveforms = [item["waveform"] for item in items]
        inputs = self.extractor(waveforms, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        return {**inputs, "labels": torch.from_numpy(np.stack([item["label"] for item in items]))}


class EmbeddedClips(Dataset):
    """Embeddings of clips in place of the clips.

    Args:
        embeddings: (N, D) float32.
        data: Whose embeddings they are.
    """

    def __init__(self, embeddings: torch.Tensor, data: LabelledAudio):
        self.embeddings = embeddings
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_values` (D,) and `labels`, which transformers' default collator stacks."""
        return {"input_values": self.embeddings[index], "labels": torch.as_tensor(self.data.target(index))}


class _Outcomes(Dataset):
    """A clip, or why there is none."""

    def __init__(self, clips: ClipDataset, indices: Sequence[int]):
        self.clips = clips
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[int, np.ndarray | None, BadClip | None]:
        index = self.indices[number]
        try:
            return index, self.clips[index]["waveform"], None
        except BadClip as error:
            return index, None, error


@torch.inference_mode()
def prepare(
    clips: ClipDataset,
    model: torch.nn.Module | None = None,
    extractor: MTSLVRFeatureExtractor | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    max_bad_share: float = 0.05,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[list[int], torch.Tensor | None]:
    """Decodes every clip once, to find those that cannot be used; embeds the others if a model is given.

    Each process takes its share of the clips, and all get to know the result. Bad clips are logged with a count of
    each reason and a few examples.

    Args:
        clips: The clips.
        model: An `MTSLVRModel` on its device.
        extractor: The model's feature extractor.
        batch_size: Clips embedded at once.
        num_workers: Processes that decode.
        max_bad_share: Largest share of bad clips that is only a warning.
        rank: This process.
        world_size: How many there are.

    Returns:
        The usable rows, in order; and their embeddings (rows, D) float32 on the CPU, or None without a model.

    Raises:
        TooManyBadRows: If more clips are bad, or all are.
    """
    mine = range(rank, len(clips), world_size)
    loader = DataLoader(_Outcomes(clips, mine), batch_size, num_workers=num_workers, collate_fn=list)
    bar = tqdm(loader, "decoding" if model is None else "embedding", unit="batch", disable=None if rank == 0 else True)
    found, skipped = [], SkippedRows()
    for batch in bar:
        for _, _, error in batch:
            skipped.add(*(() if error is None else (error.reason, str(error))))
        good = [(index, waveform) for index, waveform, error in batch if error is None]
        embeddings = [None] * len(good)
        if model is not None and good:
            inputs = extractor([w for _, w in good], sampling_rate=clips.sampling_rate, return_tensors="pt")
            embeddings = list(model(**inputs.to(model.device)).pooler_output.float().cpu())
        found += [(index, embedding) for (index, _), embedding in zip(good, embeddings)]
    found = sorted(gather_object(found), key=lambda pair: pair[0]) if world_size > 1 else found
    _report(skipped, max_bad_share, world_size)
    return [index for index, _ in found], None if model is None else torch.stack([value for _, value in found])


def _report(mine: SkippedRows, max_bad_share: float, world_size: int) -> None:
    skipped = SkippedRows()
    for state in gather_object([mine.state_dict()]) if world_size > 1 else [mine.state_dict()]:
        skipped.merge(state)
    if skipped.good == 0:
        skipped.fail("No clip can be used.")
    skipped.check(max_bad_share, after=1)
    if skipped.skipped:
        logger.warning("\n  ".join([str(skipped), *skipped.examples]))


__all__ = ["ClipCollator", "ClipDataset", "EmbeddedClips", "SetEpoch", "prepare", "read_waveform"]
