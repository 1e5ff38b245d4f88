"""Other audio models of transformers: one vector for a clip, by the mean over time.

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

WINDOW_SECONDS = 10.0  # of models that take audio of any length; their attention is quadratic in it
MIN_SECONDS = 0.1  # what the convolutions of every family need
_WAVEFORM_RATE = 16_000


class _AnyLength:
    """Models whose windows are not padded: the mean over all positions, or over those of their extractor's mask."""

    fixed_size = False

    def __init__(self, model: PreTrainedModel, extractor: Any):
        self.network = model
        self.extractor = extractor

    @property
    def window_samples(self) -> int:
        return round(WINDOW_SECONDS * self.extractor.sampling_rate)

    def positions(self, inputs: dict[str, Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) of windows of `samples` (B,) samples, and how many of T hold audio, (B,)."""
        hidden = self.network(**inputs).last_hidden_state  # (B, T, D)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape[1] == hidden.shape[1]:  # frames; that of waveforms is all ones
            return hidden, mask.sum(1)
        return hidden, torch.full_like(samples, hidden.shape[1])


class _SpectrogramTransformer(_AnyLength):
    """Patches of a spectrogram that is padded: those that begin in the audio, without the two special tokens."""

    fixed_size = True

    @property
    def _frame_samples(self) -> tuple[int, int]:
        """Length and distance of the extractor's frames: Kaldi's 25 ms and 10 ms."""
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
    """The encoder over 30 s, padded: the positions that hold audio."""

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
    """The audio tower, before the projection: all positions, as a window is filled by repeating the audio."""

    fixed_size = True

    def __init__(self, model: Any, extractor: Any):
        super().__init__(model.audio_model, extractor)

    @property
    def window_samples(self) -> int:
        return self.extractor.nb_max_samples

    def positions(self, inputs: dict[str, Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
        # The extractor marks a random window as a long clip if none is; no window is one.
        inputs = {**inputs, "is_longer": torch.zeros_like(inputs["is_longer"])}
        hidden = self.network(**inputs).last_hidden_state.flatten(2).mT  # (B, D, F, T) -> (B, F * T, D)
        return hidden, torch.full_like(samples, hidden.shape[1])


FAMILIES: dict[str, type[_AnyLength]] = {
    "audio-spectrogram-transformer": _SpectrogramTransformer,
    "clap": _Clap,
    "data2vec-audio": _AnyLength,
    "hubert": _AnyLength,
    "sew": _AnyLength,
    "sew-d": _AnyLength,
    "unispeech": _AnyLength,
    "unispeech-sat": _AnyLength,
    "wav2vec2": _AnyLength,
    "wav2vec2-bert": _AnyLength,
    "wav2vec2-conformer": _AnyLength,
    "wavlm": _AnyLength,
    "whisper": _Whisper,
}


class TransformersEmbedder:
    """An audio model of transformers, by the mean over time of its last hidden state.

    A clip longer than the model's window is cut into the fewest windows of one length that fit, and its embedding is
    the mean of theirs; one shorter than 0.1 s is repeated to 0.1 s. The model's own feature extractor prepares each
    window at its own sampling rate. Nothing is random, and no embedding depends on what else is in the batch: windows
    that the extractor would pad to each other's length go together only if they have the same length.

    | family | window | mean over |
    | --- | --- | --- |
    | wav2vec 2.0 (Conformer, BERT), HuBERT, WavLM, data2vec, SEW, SEW-D, UniSpeech (SAT) | 10 s | all positions |
    | AST | its extractor's `max_length` frames | patches that begin in the audio, without the two special tokens |
    | Whisper | 30 s | the encoder's positions that hold audio |
    | CLAP | its extractor's `max_length_s` | all positions of the audio tower, before the projection |

    Padding is in none of these means, but for CLAP, whose extractor repeats short audio and fills the rest with zeros.
    AST and Whisper attend to their padding, as they have learnt to.

    Args:
        model: Of a type in `FAMILIES`, in evaluation mode.
        feature_extractor: The model's own.
        name: In tables.
        batch_size: Windows that go through the network at once; so many clips are in memory.

    Raises:
        ValueError: If the model is of another type.
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
        """Of the network's weights, configuration, extractor and windows."""
        windows = {"window_samples": self.family.window_samples, "min_seconds": MIN_SECONDS}
        return model_fingerprint(self.family.network, self.feature_extractor, **windows)

    def embed(self, audio: Sequence[Mapping[str, Any]], show_progress: bool = False) -> dict[str, Tensor]:
        """Embeds undecoded rows, {"": (N, D)}.

        Raises:
            BadClipError: A ValueError that names the row that cannot be decoded.
        """
        rate = self.feature_extractor.sampling_rate
        parts = []
        with tqdm(total=len(audio), desc=self.name, unit="clip", disable=not show_progress) as progress:
            for begin in range(0, len(audio), self.batch_size):
                chunk = range(begin, min(begin + self.batch_size, len(audio)))
                parts.append(self._embed_clips([decode_clip(audio[index], sampling_rate=rate) for index in chunk]))
                progress.update(len(chunk))
        return {"": torch.cat(parts)}

    def embed_waveforms(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Embeds waveforms (n, S) at 16 kHz, {"": (n, D)}."""
        rate = self.feature_extractor.sampling_rate
        clips = list(waveforms.float().cpu().numpy())
        if rate != _WAVEFORM_RATE:
            clips = [soxr.resample(clip, _WAVEFORM_RATE, rate, quality="HQ") for clip in clips]
        return {"": self._embed_clips(clips)}

    def _embed_clips(self, clips: list[np.ndarray]) -> Tensor:
        """Clips (S,) at the model's rate -> (N, D)."""
        windows = [self._windows(clip) for clip in clips]
        alike: dict[int, list[tuple[int, np.ndarray]]] = {}  # windows that may share a batch, with their clip's number
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
        """Cuts a clip (S,) into windows whose lengths differ by a sample at most."""
        shortest = math.ceil(MIN_SECONDS * self.feature_extractor.sampling_rate)
        if len(clip) < shortest:
            clip = np.resize(clip, shortest)  # repeats
        return np.array_split(clip, -(-len(clip) // self.family.window_samples))

    @torch.no_grad()
    def _embed_batch(self, windows: list[np.ndarray]) -> Tensor:
        """Windows -> (B, D) float32 on the CPU."""
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
