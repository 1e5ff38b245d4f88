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
        waveform = pad(waveform, (0, max(0, _N_FFT - len(waveform))))  # at least one window
        log_mel = (self._spectrogram(waveform) + _POWER_FLOOR).log()  # (F, N)
        return torch.cat([log_mel.mean(-1), log_mel.std(-1, correction=0)])  # (2 * F,)


__all__ = ["LogMelStatistics"]
