"""Data sets of labelled clips and of their embeddings, for Trainer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..audio.hashing import hash_integers
from ..audio.recording import OnTruncated, read_waveform
from ..data import BadClipError, SkippedRows
from ..data.labelled import LabelledAudio
from ..feature_extraction_mtslvr import MTSLVRFeatureExtractor
from ..modeling_mtslvr import MTSLVRModel

logger = logging.getLogger(__name__)


class ClipDataset(Dataset):
    """Data set of labelled clips, decoded on access.

    Args:
        data: The labelled audio.
        sampling_rate: Rate of the clips in Hz.
        max_seconds: Longer clips are cropped to this length; None does not crop.
        random_crops: True for new random crops in each epoch, False for the middle.
        seed: Seed of the crops, which depend only on seed, epoch and row.
        on_truncated: "error", or "keep" to take the samples that a truncated file has.
    """

    def __init__(
        self,
        data: LabelledAudio,
        sampling_rate: int,
        max_seconds: float | None = None,
        random_crops: bool = False,
        seed: int = 0,
        on_truncated: OnTruncated = "error",
    ):
        self.data = data
        self.sampling_rate = sampling_rate
        self.max_seconds = max_seconds
        self.random_crops = random_crops
        self.seed = seed
        self.on_truncated = on_truncated
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see its changes

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
        """`waveform` (samples,) float32, not normalized, and `label`.

        Raises:
            BadClipError: If the audio cannot be used.
        """
        waveform = read_waveform(self.data.audio[index], self.sampling_rate, self.on_truncated)
        return {"waveform": self._crop(waveform, index), "label": self.data.target(index)}

    def _crop(self, waveform: np.ndarray, index: int) -> np.ndarray:
        if self.max_seconds is None or len(waveform) <= self.max_seconds * self.sampling_rate:
            return waveform
        samples = round(self.max_seconds * self.sampling_rate)
        slack = len(waveform) - samples
        start = hash_integers(self.seed, self.epoch, index) * (slack + 1) >> 64 if self.random_crops else slack // 2
        return waveform[start : start + samples].copy()  # the whole is released


class SetEpoch(TrainerCallback):
    """Callback that sets the epoch of a `ClipDataset`."""

    def __init__(self, dataset: ClipDataset):
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the epoch before its first clip is decoded."""
        self.dataset.epoch = int(state.epoch or 0)


class ClipCollator:
    """Collator of `ClipDataset` items to batches for an MT-SLVR model with this feature extractor."""

    def __init__(self, extractor: MTSLVRFeatureExtractor):
        self.extractor = extractor

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_values` and `attention_mask` (batch, samples), and `labels` (batch,) or (batch, classes)."""
        waveforms = [item["waveform"] for item in items]
        inputs = self.extractor(waveforms, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        return {**inputs, "labels": torch.from_numpy(np.stack([item["label"] for item in items]))}


class EmbeddedClips(Dataset):
    """Data set of the embeddings (N, D) float32 of labelled clips."""

    def __init__(self, embeddings: torch.Tensor, data: LabelledAudio):
        self.embeddings = embeddings
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_values` (D,) and `labels`, which transformers' default collator stacks."""
        return {"input_values": self.embeddings[index], "labels": torch.as_tensor(self.data.target(index))}


class _Outcomes(Dataset):
    """Data set of the index of a clip, and its waveform or error."""

    def __init__(self, clips: ClipDataset, indices: Sequence[int]):
        self.clips = clips
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[int, np.ndarray | None, BadClipError | None]:
        index = self.indices[number]
        try:
            return index, self.clips[index]["waveform"], None
        except BadClipError as error:
            return index, None, error


def drop_bad_clips(clips: ClipDataset, args: TrainingArguments, max_bad_share: float = 0.05) -> ClipDataset:
    """Clips that can be decoded; bad ones are logged by reason, with examples.

    Each process decodes its share of the clips once, and all get the same result.

    Args:
        clips: The clips.
        args: Sets evaluation batch size and DataLoader workers.
        max_bad_share: Largest allowed share of bad clips.

    Raises:
        TooManyBadRowsError: If more clips are bad, or all are.
    """
    usable = [index for batch in _decoded(clips, args, max_bad_share, "decoding") for index, _ in batch]
    result = copy.copy(clips)
    result.data = clips.data.select(sorted(gather_object(usable)))
    return result


@torch.inference_mode()
def embed_clips(
    clips: ClipDataset,
    model: MTSLVRModel,
    extractor: MTSLVRFeatureExtractor,
    args: TrainingArguments,
    max_bad_share: float = 0.05,
) -> EmbeddedClips:
    """Embeddings of the clips that can be decoded, by a model on its device; else as `drop_bad_clips`."""
    found: list[tuple[int, torch.Tensor]] = []
    for batch in _decoded(clips, args, max_bad_share, "embedding"):
        indices, waveforms = zip(*batch)
        inputs = extractor(list(waveforms), sampling_rate=clips.sampling_rate, return_tensors="pt")
        found += zip(indices, model(**inputs.to(model.device)).pooler_output.float().cpu())
    usable, embeddings = zip(*sorted(gather_object(found), key=lambda pair: pair[0]))
    return EmbeddedClips(torch.stack(embeddings), clips.data.select(usable))


def _decoded(
    clips: ClipDataset, args: TrainingArguments, max_bad_share: float, description: str
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Batches of indices and waveforms of this process's good clips; at the end, reports all bad ones."""
    mine = range(args.process_index, len(clips), args.world_size)
    loader = DataLoader(
        _Outcomes(clips, mine),
        args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=list,
    )
    skipped = SkippedRows()
    for batch in tqdm(loader, description, unit="batch", disable=None if args.process_index == 0 else True):
        for _, _, error in batch:
            skipped.add(*(() if error is None else (error.reason, str(error))))
        good = [(index, waveform) for index, waveform, error in batch if error is None]
        if good:
            yield good
    total = SkippedRows()
    for state in gather_object([skipped.state_dict()]):
        total.merge(state)
    if total.good == 0:
        total.fail("No clip can be used.")
    total.check(max_bad_share, after=1)
    if total.skipped:
        logger.warning("\n  ".join([str(total), *total.examples]))


__all__ = [
    "ClipCollator",
    "ClipDataset",
    "EmbeddedClips",
    "SetEpoch",
    "drop_bad_clips",
    "embed_clips",
]
