"""Noise that depends only on a seed per clip, not on device, batch or the state of a generator.

Shapes: B clips, S samples, K frequency bins.
"""

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from .base import to_device

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
    start = _mix(seeds.to(device, torch.int32, non_blocking=True)).unsqueeze(1)
    counter = torch.arange(count, dtype=torch.int32, device=device) * -1640531527  # 2^32 / golden ratio, as int32
    return _mix(start + counter)


def _mix(bits: Tensor) -> Tensor:
    # >> of an int32 repeats the sign bit; masks clear it.
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    bits *= 0x7FEB352D
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= 0x846CA68B - 2**32
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def gaussian_pairs(seeds: Tensor, count: int, device: torch.device) -> Tensor:
    """Draws (B, count) complex values with independent, standard normal parts (Box-Muller)."""
    bits = random_bits(seeds, count, device)
    angle = (bits & 0xFFFF).float().mul_(2 * math.pi * 2**-16)
    radius = ((bits >> 16) & 0xFFFF).float().add_(0.5).mul_(2**-16).log_().mul_(-2).sqrt_()
    return torch.complex(angle.cos().mul_(radius), angle.sin_().mul_(radius))


def white_noise(seeds: Tensor, samples: int, device: torch.device) -> Tensor:
    """Draws (B, samples) standard normal values."""
    pairs = gaussian_pairs(seeds, (samples + 1) // 2, device)
    return torch.view_as_real(pairs).flatten(1)[:, :samples]


def colored_noise(seeds: Tensor, exponents: Tensor, samples: int, sampling_rate: int, device: torch.device) -> Tensor:
    """Draws Gaussian noise whose power spectral density is proportional to frequency ** exponent.

    Exponent -2 is brown, -1 pink, 0 white, 1 blue, 2 violet. The density is flat below `FLAT_BELOW_HZ` and 0 at 0 Hz.

    Args:
        seeds, exponents: (B,).

    Returns:
        (B, samples), float32, of arbitrary power.
    """
    size = 2 * next_fast_len((samples + 1) // 2, real=True)  # even, no prime factor above 5
    spectrum = gaussian_pairs(seeds, size // 2 + 1, device)  # (B, K)
    hertz = torch.arange(size // 2 + 1, dtype=torch.float32, device=device) * (sampling_rate / size)
    octaves = hertz.clamp_(min=FLAT_BELOW_HZ).div_(sampling_rate / 2).log2_()  # (K,)
    amplitude = (to_device(exponents.float() / 2, spectrum) * octaves).exp2_()  # square root of the density
    amplitude[:, 0] = 0
    spectrum = spectrum.mul_(amplitude).expand(max(2, len(seeds)), -1)  # MKL computes a single spectrum differently
    return torch.fft.irfft(spectrum, n=size)[: len(seeds), :samples]


def mean_power(waveforms: Tensor) -> Tensor:
    """Mean square over time: (B, S) -> (B, 1)."""
    return torch.linalg.vector_norm(waveforms, dim=1, keepdim=True).square().div_(waveforms.shape[1])


__all__ = ["colored_noise", "mean_power", "random_bits", "white_noise"]
