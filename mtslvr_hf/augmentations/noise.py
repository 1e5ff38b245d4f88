"""Noise that depends only on a seed per clip, not on device, batch or the state of a generator.

Shapes: B clips, S samples, K frequency bins.
"""

import math
from functools import lru_cache

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from .base import sent_together, to_device

# Otherwise an exponent of -2 would put nearly all power of the noise below audible frequencies (0.1 Hz in 10 s).
FLAT_BELOW_HZ = 20.0


def random_bits(seeds: Tensor, count: int, device: torch.device) -> Tensor:
    """Hashes of (seed, counter): 32 random bits, by integer arithmetic, equal on all devices.

    Source: the mixing constants of C. Wellons, "Prospecting for hash functions" (lowbias32).

    Args:
        seeds: (B,) integers of at most 31 bits.

    Returns:
        (B, count) int32.
    """
    start = _mix(seeds.to(torch.int32, copy=True)).to(device, non_blocking=True).unsqueeze(1)
    return _mix(start + _counter(count, device))


@lru_cache(maxsize=8)
def _counter(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device) * -1640531527  # 2^32 / golden ratio, as int32


def _mix(bits: Tensor) -> Tensor:
    # Overwrites `bits`. >> of an int32 repeats the sign bit; masks clear it.
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
    bits *= 0x7FEB352D
    bits ^= (bits >> 15).bitwise_and_(0x1FFFF)
    bits *= 0x846CA68B - 2**32
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
    return bits


def gaussian_pairs(device: torch.device, *draws: tuple[Tensor, int]) -> list[Tensor]:
    """Draws complex values with independent, standard normal parts (Box-Muller).

    Args:
        draws: Seeds (B,) and number of values of each draw. All draws together need as many operators as one.

    Returns:
        (B, number) complex64 for each draw.
    """
    sizes = [len(seeds) * count for seeds, count in draws]
    bits = torch.empty(sum(sizes), dtype=torch.int32, device=device)
    starts = sent_together([_mix(seeds.to(torch.int32, copy=True)).unsqueeze(1) for seeds, _ in draws], device)
    for start, (seeds, count), part in zip(starts, draws, bits.split(sizes), strict=True):
        torch.add(start, _counter(count, device), out=part.view(len(seeds), count))
    _mix(bits)
    angle = (bits & 0xFFFF).float().mul_(2 * math.pi * 2**-16)
    radius = bits.bitwise_right_shift_(16).bitwise_and_(0xFFFF).float()
    radius.add_(0.5).mul_(2**-16).log_().mul_(-2).sqrt_()
    pairs = torch.complex(angle.cos().mul_(radius), angle.sin_().mul_(radius))  # torch.polar is slow on a CPU
    return [part.view(len(seeds), count) for (seeds, count), part in zip(draws, pairs.split(sizes), strict=True)]


def white_noise(seeds: Tensor, samples: int, device: torch.device) -> Tensor:
    """Draws (B, samples) standard normal values."""
    return in_time(gaussian_pairs(device, (seeds, pairs_of(samples)))[0], samples)


def pairs_of(samples: int) -> int:
    """Values of `gaussian_pairs` for white noise."""
    return (samples + 1) // 2


def in_time(pairs: Tensor, samples: int) -> Tensor:
    """White noise (B, samples) from `gaussian_pairs`."""
    return torch.view_as_real(pairs).flatten(1)[:, :samples]


def colored_noise(seeds: Tensor, exponents: Tensor, samples: int, sampling_rate: int, device: torch.device) -> Tensor:
    """Draws Gaussian noise whose power spectral density is proportional to frequency ** exponent.

    Exponent -2 is brown, -1 pink, 0 white, 1 blue, 2 violet. The density is flat below `FLAT_BELOW_HZ` and 0 at 0 Hz.

    Args:
        seeds, exponents: (B,).

    Returns:
        (B, samples), float32, of arbitrary power.
    """
    (spectrum,) = gaussian_pairs(device, (seeds, bins_of(samples)))
    return colored(spectrum, exponents, samples, sampling_rate)


def bins_of(samples: int) -> int:
    """Values of `gaussian_pairs` for the spectrum of colored noise."""
    return next_fast_len((samples + 1) // 2, real=True) + 1  # of an even size with no prime factor above 5


def colored(spectrum: Tensor, exponents: Tensor, samples: int, sampling_rate: int) -> Tensor:
    """Colored noise (B, samples) from `gaussian_pairs` (B, K), which it overwrites."""
    size = 2 * (spectrum.shape[1] - 1)
    octaves = _octaves(spectrum.shape[1], sampling_rate / size, sampling_rate / 2, spectrum.device)
    amplitude = (to_device(exponents.float() / 2, spectrum) * octaves).exp2_()  # square root of the density
    amplitude[:, 0].zero_()
    spectrum = spectrum.mul_(amplitude)
    noise = torch.fft.irfft(spectrum.expand(max(2, len(spectrum)), -1), n=size)  # MKL computes one otherwise
    return noise[: len(spectrum), :samples]


@lru_cache(maxsize=8)
def _octaves(bins: int, hertz: float, highest: float, device: torch.device) -> Tensor:
    # (K,), logarithm of the frequency relative to the highest, of bins `hertz` apart.
    frequencies = torch.arange(bins, dtype=torch.float32, device=device) * hertz
    return frequencies.clamp_(min=FLAT_BELOW_HZ).div_(highest).log2_()


def mean_power(waveforms: Tensor) -> Tensor:
    """Mean square over time: (B, S) -> (B, 1)."""
    return torch.linalg.vector_norm(waveforms, dim=1, keepdim=True).square().div_(waveforms.shape[1])


__all__ = [
    "bins_of",
    "colored",
    "colored_noise",
    "gaussian_pairs",
    "in_time",
    "mean_power",
    "pairs_of",
    "random_bits",
    "white_noise",
]
