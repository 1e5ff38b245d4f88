"""Signals whose augmented version is known, and what to measure on them."""

import math

import torch

RATE = 16000  # Hz


def tone(hertz: float, seconds: float = 3.0, phase: float = 0.3) -> torch.Tensor:
    time = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    return torch.sin(2 * math.pi * hertz * time + phase).float()


def chord_in_noise(clips: int, seconds: float = 1.0) -> torch.Tensor:
    """(B, S): something like music, different in each clip."""
    generator = torch.Generator().manual_seed(7)
    noise = 0.05 * torch.randn(clips, int(seconds * RATE), generator=generator)
    tones = [tone(150.0 + 90 * clip, seconds) + 0.5 * tone(1000.0 + 130 * clip, seconds) for clip in range(clips)]
    envelope = torch.linspace(0, 6 * math.pi, noise.shape[1]).sin().clamp(min=0)
    return torch.stack(tones) * envelope + noise


def peak_and_rest(waveform: torch.Tensor) -> tuple[float, float, float]:
    """Frequency of the highest peak (Hz), highest other component and power of all others, in dB below the peak's."""
    spectrum = torch.fft.rfft(waveform.double() * torch.hann_window(len(waveform), dtype=torch.float64)).abs()
    peak = int(spectrum.argmax())
    hertz = peak * RATE / len(waveform)
    width = max(8, int(0.02 * peak))
    own = torch.zeros(len(spectrum), dtype=torch.bool)
    own[max(0, peak - width) : peak + width + 1] = True
    highest = 20 * torch.log10(spectrum[~own].max() / spectrum[peak])
    power = 10 * torch.log10(spectrum[~own].square().sum() / spectrum[own].square().sum())
    return hertz, float(highest), float(power)


def level_db(waveform: torch.Tensor) -> float:
    return float(10 * torch.log10(waveform.double().square().mean()))
