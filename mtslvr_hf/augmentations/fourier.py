"""Fourier transforms of whole clips."""

from functools import lru_cache

import torch
from torch import Tensor


def long_rfft(waveforms: Tensor, size: int) -> Tensor:
    """rfft of whole clips, (B, S) -> (B, size // 2 + 1), that gives a clip alone what it gives in a batch.

    MKL computes one long transform in another way than several, so a lone clip goes as a pair.
    """
    return torch.fft.rfft(waveforms.expand(max(2, len(waveforms)), -1), n=size)[: len(waveforms)]


def long_irfft(spectra: Tensor, size: int) -> Tensor:
    """irfft, (B, size // 2 + 1) -> (B, size), with the same property as `long_rfft`."""
    return torch.fft.irfft(spectra.expand(max(2, len(spectra)), -1), n=size)[: len(spectra)]


@lru_cache(maxsize=64)
def fast_fft_size(samples: int) -> int:
    """The smallest even number >= samples without prime factors above 5."""
    best = 1 << max(samples - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = 2 * three
            while two < samples:
                two *= 2
            best = min(best, two)
            three *= 3
        five *= 5
    return best


__all__ = ["fast_fft_size", "long_irfft", "long_rfft"]
