"""Changing time and pitch together: a band-limited resampler with a ratio per clip.

Shapes: B clips, S samples, K frequency bins.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .base import blocks_of_time, to_device
from .fourier import fast_fft_size, long_irfft, long_rfft

TAPS = 8  # of the interpolation filter, on a signal oversampled twice
PHASES = 1024  # fractional positions the filter is tabulated at: rounding stays below -60 dB at 8 kHz


def resample(waveforms: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Reads every clip `ratio` times as fast: time and pitch change together. Band-limited, without aliases.

    The clip is filtered and oversampled twice by Fourier transform, then read with a Kaiser-windowed sinc.

    Args:
        waveforms: (B, S).
        ratios: (B,) float64, > 0, on the CPU.

    Returns:
        Clips (B, longest), sample t being the input at t * ratio, with zeros from each clip's new length on; and these
        lengths, (B,) int64 on the CPU.
    """
    samples, device = waveforms.shape[1], waveforms.device
    lengths, order = torch.ceil(samples / ratios).long().sort(descending=True)
    ratios = ratios[order]
    size = fast_fft_size(samples + TAPS)
    spectrum = long_rfft(waveforms[order.to(device, non_blocking=True)], size)  # (B, K), longest result first
    if ratios.max() > 1:
        spectrum *= _antialias(ratios, size // 2 + 1).to(device, non_blocking=True)
    fine = long_irfft(spectrum, 2 * size).mul_(2)  # (B, 2 * size)
    fine = torch.cat([fine[:, 1 - TAPS // 2 :], fine], dim=1)  # room for the first taps: the filter's ringing before 0

    # Positions in the oversampled clip are integers of 2^-32 samples, exact on every device.
    step = to_device((ratios * 2**33).round_().long(), waveforms)
    taps = _interpolation_filter(device).unsqueeze(1).expand(-1, len(ratios), -1)  # (TAPS, B, PHASES)
    output = torch.zeros(len(ratios), int(lengths[0]), device=device)
    for block in blocks_of_time(0, output.shape[1], 2 * len(ratios), device):
        active = int((lengths > block.start).sum())  # the first clips; the others end before this block
        position = torch.arange(block.start, block.stop, device=device) * step[:active] + 2**32 // (2 * PHASES)
        phase = (position >> 22).bitwise_and_(PHASES - 1)  # (active, block)
        index = position.bitwise_right_shift_(32).clamp_(max=2 * (samples + 1))
        for tap in taps:
            output[:active, block].addcmul_(fine.gather(1, index), tap.gather(1, phase))
            index += 1
    beyond = torch.arange(output.shape[1], device=device) >= to_device(lengths, waveforms)
    back = order.argsort()
    return output.masked_fill_(beyond, 0)[back.to(device, non_blocking=True)], lengths[back]


def _antialias(ratios: Tensor, bins: int) -> Tensor:
    # Gains (B, bins) float32: 1, falling to 0 over the tenth below the highest frequency that stays under Nyquist.
    highest = ((bins - 1) / ratios).unsqueeze(1)
    slope = ((highest - torch.arange(bins)) / (0.1 * highest)).clamp_(0, 1)
    gains = 0.5 - 0.5 * torch.cos(math.pi * slope)
    return torch.where(ratios.unsqueeze(1) > 1, gains, 1.0).float()


@lru_cache(maxsize=8)
def _interpolation_filter(device: torch.device) -> Tensor:
    # (TAPS, PHASES): weight of each tap at each fractional position. Passes 1/4 of the (doubled) rate, stops 3/4.
    fraction = torch.arange(PHASES, dtype=torch.float64) / PHASES
    distance = torch.arange(1 - TAPS // 2, TAPS // 2 + 1).unsqueeze(1) - fraction
    beta = torch.tensor(5.4, dtype=torch.float64)
    shape = torch.i0(beta * (1 - (distance / (TAPS // 2)).square()).clamp(min=0).sqrt())
    taps = torch.sinc(distance) * shape
    return (taps / taps.sum(0)).float().to(device)


__all__ = ["resample"]
