"""What an embedding must beat: statistics of the log-mel spectrogram."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch.nn.functional import pad
from tqdm.auto import tqdm

from ..data import decode_clip

_SAMPLING_RATE = 16_000
_N_FFT = 1024
_HOP_LENGTH = 512
_BANDS = 40
# Below any band's power in a clip of 16-bit audio at usual levels; keeps silence from ruling the mean.
_POWER_FLOOR = 1e-6


def read_audio(path: str | Path, sampling_rate: int = _SAMPLING_RATE) -> np.ndarray:
    """An audio file's whole waveform: mono, float32 (samples,), at `sampling_rate` Hz, not normalised.

    Raises:
        BadClip: A ValueError that names the file, when it is missing, not audio, cut off, empty, silent or not finite.
    """
    return decode_clip({"bytes": None, "path": str(path)}, sampling_rate=sampling_rate)


def log_mel_statistics(files: Sequence[str | Path], show_progress: bool = True) -> torch.Tensor:
    """Mean and standard deviation over time of each file's 40-band log-mel spectrogram, (files, 80).

    16 kHz mono, n_fft 1024, hop 512, 0 to 8 kHz. The first 40 columns are the means.

    Raises:
        ValueError: when a file cannot be read as audio.
    """
    spectrogram = torchaudio.transforms.MelSpectrogram(
        _SAMPLING_RATE, n_fft=_N_FFT, hop_length=_HOP_LENGTH, n_mels=_BANDS, f_max=_SAMPLING_RATE / 2
    )
    return torch.stack([_statistics(path, spectrogram) for path in tqdm(files, "log-mel", disable=not show_progress)])


def _statistics(path: str | Path, spectrogram: torch.nn.Module) -> torch.Tensor:
    waveform = torch.from_numpy(read_audio(path, _SAMPLING_RATE))  # (samples,)
    waveform = pad(waveform, (0, max(0, _N_FFT - len(waveform))))  # one whole window at least
    log_mel = (spectrogram(waveform) + _POWER_FLOOR).log()  # (F, N)
    return torch.cat([log_mel.mean(-1), log_mel.std(-1, correction=0)])  # (2 * F,)


__all__ = ["log_mel_statistics", "read_audio"]
