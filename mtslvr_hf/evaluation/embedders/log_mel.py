"""Baseline of log-mel statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torchaudio
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from ...data import decode_clip
from ...fingerprints import settings_fingerprint

_SAMPLING_RATE = 16_000
_N_FFT = 1024
_HOP_LENGTH = 512
_BANDS = 40
_LONG_FRAMES = 2**15  # about 17 minutes; the spectrogram of a longer clip is computed in parts
_POWER_FLOOR = 1e-6  # below the power of any band in usual 16-bit audio; limits the effect of silence on the mean


class LogMelStatistics:
    """Embedder (D = 80) by means, then standard deviations, over time of a clip's 40-band log-mel spectrogram.

    16 kHz mono, n_fft 1024, hop 512, 0 to 8 kHz.
    """

    name = "log-mel statistics"

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the settings."""
        return settings_fingerprint(
            embedder=self.name,
            torchaudio=torchaudio.__version__,
            settings=[_SAMPLING_RATE, _N_FFT, _HOP_LENGTH, _BANDS, _POWER_FLOOR],
        )

    @cached_property
    def _spectrogram(self) -> torch.nn.Module:
        return torchaudio.transforms.MelSpectrogram(
            _SAMPLING_RATE, n_fft=_N_FFT, hop_length=_HOP_LENGTH, n_mels=_BANDS, f_max=_SAMPLING_RATE / 2
        )

    def embed(self, audio: Sequence[Mapping[str, Any]], show_progress_bar: bool = False) -> dict[str, Tensor]:
        """Embeddings {"": (N, 80)} of undecoded rows; BadClipError names the row that cannot be decoded."""
        rows = tqdm(
            (audio[index] for index in range(len(audio))), "log-mel", len(audio), disable=not show_progress_bar
        )
        clips = (torch.from_numpy(decode_clip(row, sampling_rate=_SAMPLING_RATE)) for row in rows)
        return {"": torch.stack([self._statistics(clip) for clip in clips])}

    def embed_waveforms(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Embeddings {"": (n, 80)} of waveforms (n, S) at 16 kHz."""
        return {"": torch.stack([self._statistics(waveform) for waveform in waveforms.float().cpu()])}

    def _statistics(self, waveform: Tensor) -> Tensor:
        if len(waveform) > _LONG_FRAMES * _HOP_LENGTH:
            return self._statistics_in_parts(waveform)
        waveform = pad(waveform, (0, max(0, _N_FFT - len(waveform))))  # at least one window
        log_mel = (self._spectrogram(waveform) + _POWER_FLOOR).log()  # (F, N)
        return torch.cat([log_mel.mean(-1), log_mel.std(-1, correction=0)])  # (2 * F,)

    def _statistics_in_parts(self, waveform: Tensor) -> Tensor:
        """Statistics of a long clip (S,) from parts of its spectrogram, in bounded memory."""
        frames = len(waveform) // _HOP_LENGTH + 1
        total, squares = torch.zeros(_BANDS, dtype=torch.float64), torch.zeros(_BANDS, dtype=torch.float64)
        for first in range(0, frames, _LONG_FRAMES):
            last = min(first + _LONG_FRAMES, frames)
            begin = max(0, first - 1) * _HOP_LENGTH  # a frame before, whose window is not whole
            end = len(waveform) if last == frames else last * _HOP_LENGTH
            part = self._spectrogram(waveform[begin:end])[:, 1 if first else 0 :][:, : last - first]
            log_mel = (part + _POWER_FLOOR).log().double()  # (F, N)
            total += log_mel.sum(-1)
            squares += log_mel.square().sum(-1)
        mean = total / frames
        return torch.cat([mean, (squares / frames - mean.square()).clamp_min(0).sqrt()]).float()


__all__ = ["LogMelStatistics"]
