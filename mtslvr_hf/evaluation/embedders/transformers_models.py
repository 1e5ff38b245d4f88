"""Embeddings of clips by other audio models of transformers: the mean over time.

Shapes: N clips, B windows in a batch, S samples, T positions over time, F positions over frequency, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ...data import decode_clip
from ...fingerprints import model_fingerprint

WINDOW_SECONDS = 10.0  # of models without a fixed length; their attention is quadratic in it
MIN_SECONDS = 0.1  # needed by the convolutions of every family
_WAVEFORM_RATE = 16_000


class _AnyLength:
    """Models without padding: mean over all positions, or over those of the extractor's mask."""

    fixed_size = False

    def __init__(self, model: PreTrainedModel, extractor: Any):
        self.network = model
        self.extractor = extractor

    @property
    def window_samples(self) -> int:
        return round(WINDOW_SECONDS * self.extractor.sampling_rate)

    def positions(self, inputs: dict[str, Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) of windows with `samples` (B,), and numbers of positions with audio, (B,)."""
        hidden = self.network(**inputs).last_hidden_state  # (B, T, D)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape[1] == hidden.shape[1]:  # mask of frames; a mask of waveforms is all ones
            return hidden, mask.sum(1)
        return hidden, torch.full_like(samples, hidden.shape[1])


class _SpectrogramTransformer(_AnyLength):
    """Padded spectrograms: mean over the patches that begin in the audio, without the two special tokens."""

    fixed_size = True

    @property
    def _frame_samples(self) -> tuple[int, int]:
        """Length and hop of the extractor's frames in samples: Kaldi's 25 ms and 10 ms."""
        return self.extractor.sampling_rate * 25 // 1000, self.extractor.sampling_rate // 100

    @property
    def window_samples(self) -> int:
        length, hop = self._frame_samples
        return (self.extractor.max_length - 1) * hop + length

    def positions(self, inputs: dict[str, Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
        config, (length, hop) = self.network.config, self._frame_samples
        hidden = self.network(**inputs).last_hidden_state[:, 2:]  # (B, F * T, D)
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        hidden = hidden.unflatten(1, (bands, -1)).mean(1)  # (B, T, D)
        frames = 1 + (samples - length) // hop
        return hidden, torch.ceil(frames / config.time_stride).long().clamp(max=hidden.shape[1])


class _Whisper(_AnyLength):
    """Encoder over padded 30 s: mean over the positions with audio."""

    fixed_size = True

    def __init__(self, model: PreTrainedModel, extractor: Any):
        super().__init__(model.get_encoder(), extractor)

    @property
    def window_samples(self) -> int:
        return self.extractor.n_samples

    def positions(self, inputs: dict[str, Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.network(inputs["input_features"]).last_hidden_state  # (B, T, D)
        return hidden, torch.ceil(samples * hidden.shape[1] / self.extractor.n_samples).long()


class _Clap(_AnyLength):
    """Audio tower before the projection: mean over all positions, as repeated audio fills the window."""

    fixed_size = True

    def __init__(self, model: Any, extractor: Any):
        super().__init__(model.audio_model, extractor)

    @property
    def window_samples(self) -> int:
        return self.extractor.nb_max_samples

    def positions(self, inputs: dict[str, Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
        # The extractor marks a random window as long if none is; none of these windows is long.
        inputs = {**inputs, "is_longer": torch.zeros_like(inputs["is_longer"])}
        hidden = self.network(**inputs).last_hidden_state.flatten(2).mT  # (B, D, F, T) -> (B, F * T, D)
        return hidden, torch.full_like(samples, hidden.shape[1])


_ANY_LENGTH = "data2vec-audio hubert sew sew-d unispeech unispeech-sat wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm"
FAMILIES: dict[str, type[_AnyLength]] = {
    **dict.fromkeys(_ANY_LENGTH.split(), _AnyLength),
    "audio-spectrogram-transformer": _SpectrogramTransformer,
    "clap": _Clap,
    "whisper": _Whisper,
}


class TransformersEmbedder:
    """Embedder by an audio model of transformers: the mean over time of its last hidden state.

    A clip longer than the model's window is cut into the fewest windows of equal length, and its embedding is the mean
    over these; a clip shorter than 0.1 s is repeated to 0.1 s. The model's feature extractor prepares each window at
    its sampling rate. Embeddings are deterministic and independent of the batch: models without a fixed window get
    batches of windows of equal length.

    | family | window | mean over |
    | --- | --- | --- |
    | wav2vec 2.0 (Conformer, BERT), HuBERT, WavLM, data2vec, SEW, SEW-D, UniSpeech (SAT) | 10 s | all positions |
    | AST | its extractor's `max_length` frames | patches that begin in the audio, without the two special tokens |
    | Whisper | 30 s | the encoder's positions that hold audio |
    | CLAP | its extractor's `max_length_s` | all positions of the audio tower, before the projection |

    These means contain no padding except in CLAP, whose extractor repeats short audio and fills the rest with zeros.
    AST and Whisper attend to padding, as in their training.

    Args:
        model: Model of a type in `FAMILIES`, in evaluation mode; ValueError for other types.
        name: Name in tables.
        batch_size: Windows per batch, and clips in memory.
    """

    def __init__(self, model: PreTrainedModel, feature_extractor: Any, name: str, batch_size: int = 16):
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise ValueError(f"got a model of type {kind}; expected one of {', '.join(FAMILIES)}.")
        self.family = FAMILIES[kind](model, feature_extractor)
        self.feature_extractor = feature_extractor
        self.name = name
        self.batch_size = batch_size

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, configuration, extractor and windows."""
        windows = {"window_samples": self.family.window_samples, "min_seconds": MIN_SECONDS}
        return model_fingerprint(self.family.network, self.feature_extractor, **windows)

    def embed(self, audio: Sequence[Mapping[str, Any]], show_progress_bar: bool = False) -> dict[str, Tensor]:
        """Embeddings {"": (N, D)} of undecoded rows; BadClipError names the row that cannot be decoded."""
        rate = self.feature_extractor.sampling_rate
        parts = []
        with tqdm(total=len(audio), desc=self.name, unit="clip", disable=not show_progress_bar) as progress:
            for begin in range(0, len(audio), self.batch_size):
                chunk = range(begin, min(begin + self.batch_size, len(audio)))
                parts.append(self._embed_clips([decode_clip(audio[index], sampling_rate=rate) for index in chunk]))
                progress.update(len(chunk))
        return {"": torch.cat(parts)}

    def embed_waveforms(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Embeddings {"": (n, D)} of waveforms (n, S) at 16 kHz."""
        rate = self.feature_extractor.sampling_rate
        clips = list(waveforms.float().cpu().numpy())
        if rate != _WAVEFORM_RATE:
            clips = [soxr.resample(clip, _WAVEFORM_RATE, rate, quality="HQ") for clip in clips]
        return {"": self._embed_clips(clips)}

    def _embed_clips(self, clips: list[np.ndarray]) -> Tensor:
        """Embeddings (N, D) of clips (S,) at the model's rate."""
        windows = [self._windows(clip) for clip in clips]
        alike: dict[int, list[tuple[int, np.ndarray]]] = {}  # windows for common batches, with clip numbers
        for number, own in enumerate(windows):
            for window in own:
                alike.setdefault(0 if self.family.fixed_size else len(window), []).append((number, window))
        found: list[list[Tensor]] = [[] for _ in clips]
        for group in alike.values():
            for begin in range(0, len(group), self.batch_size):
                batch = group[begin : begin + self.batch_size]
                for (number, _), embedding in zip(batch, self._embed_batch([window for _, window in batch])):
                    found[number].append(embedding)
        return torch.stack([torch.stack(own).mean(0) for own in found])

    def _windows(self, clip: np.ndarray) -> list[np.ndarray]:
        """Windows of a clip (S,), of equal length up to one sample."""
        shortest = math.ceil(MIN_SECONDS * self.feature_extractor.sampling_rate)
        if len(clip) < shortest:
            clip = np.resize(clip, shortest)  # repeats
        return np.array_split(clip, -(-len(clip) // self.family.window_samples))

    @torch.no_grad()
    def _embed_batch(self, windows: list[np.ndarray]) -> Tensor:
        """Embeddings (B, D) of windows, float32 on the CPU."""
        network = self.family.network
        prepared = self.feature_extractor(
            windows, sampling_rate=self.feature_extractor.sampling_rate, return_tensors="pt"
        )
        inputs = {
            name: (values.float() if values.is_floating_point() else values).to(network.device)
            for name, values in prepared.items()
        }
        samples = torch.tensor([len(window) for window in windows], device=network.device)
        hidden, used = self.family.positions(inputs, samples)  # (B, T, D), (B,)
        mask = torch.arange(hidden.shape[1], device=hidden.device) < used[:, None]  # (B, T)
        total = hidden.float().masked_fill(~mask[..., None], 0).sum(1)
        return (total / mask.sum(1, keepdim=True)).cpu()


__all__ = ["FAMILIES", "TransformersEmbedder"]
