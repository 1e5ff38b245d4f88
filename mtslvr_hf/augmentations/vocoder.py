"""Changing time and pitch: a phase-locked phase vocoder and a resampler, both with a rate per clip.

Shapes: B clips, S samples, N frames, K frequency bins.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

OVERLAP = 4  # frames over each sample: squared Hann windows then add up to a constant, 0.375 * OVERLAP
ONSET_RATIO = 8.0  # a frame whose power is this many times that of the half frame before it begins something new
ENERGY_BLOCK = 32  # samples: the resolution of the onset detector, 2 ms
TAPS = 8  # of the interpolation filter, on a signal oversampled twice
PHASES = 1024  # fractional positions the filter is tabulated at: rounding stays below -60 dB at 8 kHz
BLOCK_VALUES = 2**19  # numbers in a block of time on a CPU: 2 MB
WEAK = 1e-4  # of a frame's mean power over the bins: 40 dB below a flat spectrum, 65 dB below a lone tone
SILENCE = 1e-30  # keeps the direction of 0 defined


def phase_vocoder(waveforms: Tensor, rates: Tensor, lengths: Tensor, num_samples: int, n_fft: int) -> Tensor:
    """Plays every clip `rate` times as fast without changing its pitch.

    Frames of `n_fft` samples (Hann) are read every hop * rate samples and written every hop = n_fft / 4 samples, rotated
    such that every partial continues where the previous frame left it. The phase that a partial advances in one hop is
    measured, not unwrapped: each frame is read twice, at its place and one hop earlier. With X_n and B_n these two spectra,

        rotation_n = rotation_(n-1) * direction(X_(n-1) * conj(B_n)),     output_n = X_n * rotation_n,

    so that at rate 1 (B_n = X_(n-1)) the output is the input. Three things keep level and attacks, and keep rounding errors
    from growing along a clip: a direction is that of a sum over neighbouring bins, so that the bins around a peak turn
    together; where a bin is far below its frame's mean power the direction is that of no rotation; and rotations are counted
    from the last attack, or from the next one as soon as a frame reaches into it, so that an attack sounds as recorded.

    Source: Flanagan and Golden (1966) for the vocoder; Laroche and Dolson (1999), section III, for phase locking (here
    with weights instead of peaks); Roebel (2003) for starting over at attacks.

    Args:
        waveforms: (B, S), zero from each clip's length on.
        rates: (B,) float64, > 0, on the CPU.
        lengths: (B,) int64, each clip's samples, on the CPU.

    Returns:
        (B, num_samples); sample t comes from around sample t * rate.
    """
    hop = n_fft // OVERLAP
    lengths = lengths.to(waveforms.device, non_blocking=True).unsqueeze(1)
    frames = torch.arange(-1, (num_samples - 1 + n_fft // 2 - 1) // hop + 1, device=waveforms.device)
    advance = rates.to(waveforms.device, non_blocking=True).unsqueeze(1) * hop
    centers = (frames * advance).round_().long().clamp_(min=0).minimum(lengths)  # (B, N), in samples of the input
    start = phase_references(waveforms, centers, (advance / 2).ceil().long(), lengths, n_fft // 2)

    padded = F.pad(waveforms, (n_fft // 2 + hop, n_fft // 2))
    window = torch.hann_window(n_fft, device=waveforms.device)
    spectra, floors, rotations = _analyse(padded, centers, window)
    output = _synthesise(spectra, floors, rotations, start, window / (0.375 * OVERLAP))
    return output[:, n_fft // 2 + hop :][:, :num_samples]


def _blocks(start: int, stop: int, values: int, device: torch.device) -> Iterator[slice]:
    # Cuts steps start..stop-1 of time, with `values` numbers in each, into blocks that stay in a processor's cache, which
    # makes large batches twice as fast. An accelerator takes all at once.
    size = max(1, BLOCK_VALUES // values) if device.type == "cpu" else max(1, stop - start)
    for begin in range(start, stop, size):
        yield slice(begin, min(begin + size, stop))


def _analyse(padded: Tensor, centers: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Of every frame: its spectrum, complex (B, N, K); the power below which a bin is weak, (B, N, 1); the rotation of each
    # bin but the last counted from the first frame, complex (B, N, K - 1).
    batch, count = centers.shape
    n_fft = window.shape[0]
    rows = torch.arange(batch, device=padded.device).unsqueeze(1)
    candidates = padded.unfold(1, n_fft, 1)  # (B, samples, n_fft), a view
    spectra = torch.empty(batch, count, n_fft // 2 + 1, dtype=torch.complex64, device=padded.device)
    rotations = torch.empty_like(spectra[..., :-1])
    floors = torch.empty(batch, count, 1, device=padded.device)
    for block in _blocks(0, count, batch * n_fft, padded.device):
        frames = candidates[rows, centers[:, block] + n_fft // OVERLAP].mul_(window)  # (B, block, n_fft)
        floors[:, block] = torch.linalg.vector_norm(frames, dim=2, keepdim=True).square_().mul_(WEAK).add_(SILENCE)
        spectra[:, block] = torch.fft.rfft(frames)
    rotations[:, 0] = 1
    for block in _blocks(1, count, batch * n_fft, padded.device):
        steps = torch.fft.rfft(candidates[rows, centers[:, block]].mul_(window)).conj_physical_()[..., :-1]
        steps = steps.mul_(spectra[:, block.start - 1 : block.stop - 1, :-1])
        torch.sgn(_over_neighbours(steps).add_(floors[:, block]), out=rotations[:, block])
    return spectra, floors, rotations.cumprod_(1)  # not block by block: it accumulates in float64


def _synthesise(spectra: Tensor, floors: Tensor, rotations: Tensor, start: Tensor, window: Tensor) -> Tensor:
    # The rotated frames added up, frame n at n * hop; rotations count from the frames `start` (B, N). Rotates `spectra`.
    rows = torch.arange(len(spectra), device=spectra.device).unsqueeze(1)
    n_fft = window.shape[0]
    output = window.new_zeros(len(spectra), spectra.shape[1] + OVERLAP - 1, n_fft // OVERLAP)
    for block in _blocks(0, spectra.shape[1], len(spectra) * n_fft, spectra.device):
        spectrum = spectra[:, block, :-1]
        rotation = rotations[rows, start[:, block]].conj_physical_().mul_(rotations[:, block])
        by_power = rotation.mul_(spectrum).mul_(spectrum.conj())
        spectrum *= _over_neighbours(by_power).add_(floors[:, block]).sgn_()
        frames = torch.fft.irfft(spectra[:, block], n=n_fft).mul_(window)
        parts = frames.unflatten(2, (OVERLAP, -1))  # (B, block, OVERLAP, hop)
        for part in reversed(range(OVERLAP)):  # oldest frame first, in whatever blocks: a sum's rounding depends on order
            output[:, block.start + part : block.stop + part] += parts[:, :, part]
    return output.flatten(1)


def _over_neighbours(values: Tensor) -> Tensor:
    # Sums over bins k-2..k+2 with weights 1 4 6 4 1, in the shape given.
    values = F.pad(values, (2, 2))
    for _ in range(4):
        values = values[..., 1:] + values[..., :-1]
    return values


def phase_references(waveforms: Tensor, centers: Tensor, reach: Tensor, lengths: Tensor, half_frame: int) -> Tensor:
    """Finds the frame from which each frame's phases are counted: its last attack, or the next if it is near.

    An attack is a frame whose samples (center +- reach) have `ONSET_RATIO` times the mean power of the half frame before
    them. The first frame counts as one.

    Args:
        waveforms: (B, S). centers: (B, N). reach: (B, 1). lengths: (B, 1).

    Returns:
        (B, N) int64 frame numbers.
    """
    blocks = F.pad(waveforms, (0, -waveforms.shape[1] % ENERGY_BLOCK)).unflatten(1, (-1, ENERGY_BLOCK))
    energy = F.pad(
        torch.linalg.vector_norm(blocks, dim=2).double().square_().cumsum(1), (1, 0)
    )  # of all blocks before

    def energy_until(sample: Tensor) -> Tensor:
        return energy.gather(1, (sample // ENERGY_BLOCK).clamp_(0, energy.shape[1] - 1))

    begin = energy_until(centers - reach)
    power = (energy_until(centers + reach) - begin) / (2 * reach)
    power_before = (begin - energy_until(centers - reach - half_frame)) / half_frame
    attack = power > ONSET_RATIO * (power_before + 1e-5 * energy[:, -1:] / lengths)
    attack[:, 0] = True

    frames = torch.arange(centers.shape[1], device=centers.device).expand_as(centers)
    last = torch.where(attack, frames, 0).cummax(1).values
    coming = torch.where(attack, frames, frames.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    near = attack.gather(1, coming) & (centers.gather(1, coming) - centers < half_frame)
    return torch.where(near, coming, last)


def resample(waveforms: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Reads every clip `ratio` times as fast: time and pitch change together. Band-limited, without aliases.

    The clip is filtered and oversampled twice by Fourier transform, then read at t * ratio with a Kaiser-windowed sinc.

    Args:
        waveforms: (B, S).
        ratios: (B,) float64, > 0, on the CPU.

    Returns:
        Clips (B, longest), sample t being the input at t * ratio, with zeros from each clip's length on; and these lengths,
        (B,) int64 on the CPU.
    """
    samples, device = waveforms.shape[1], waveforms.device
    lengths, order = torch.ceil(samples / ratios).long().sort(descending=True)
    ratios = ratios[order]
    size = fast_fft_size(samples + TAPS)
    spectrum = long_rfft(waveforms[order.to(device, non_blocking=True)], size)  # (B, K), longest result first
    if ratios[-1] > 1:
        spectrum *= _antialias(ratios, size // 2 + 1).to(device, non_blocking=True)
    fine = long_irfft(spectrum, 2 * size).mul_(2)  # (B, 2 * size)
    fine = torch.cat([fine[:, 1 - TAPS // 2 :], fine], dim=1)  # room for the first taps: the filter's ringing before 0

    # Positions in the oversampled clip are integers of 2^-32 samples, exact on every device.
    step = (ratios * 2**33).round_().long().to(device, non_blocking=True).unsqueeze(1)
    taps = _interpolation_filter(device).unsqueeze(1).expand(-1, len(ratios), -1)  # (TAPS, B, PHASES)
    output = torch.zeros(len(ratios), int(lengths[0]), device=device)
    for block in _blocks(0, output.shape[1], 2 * len(ratios), device):
        active = int((lengths > block.start).sum())  # the first clips; the others end before this block
        position = torch.arange(block.start, block.stop, device=device) * step[:active] + 2**32 // (2 * PHASES)
        phase = (position >> 22).bitwise_and_(PHASES - 1)  # (active, block)
        index = position.bitwise_right_shift_(32).clamp_(max=2 * (samples + 1))
        for tap in taps:
            output[:active, block].addcmul_(fine.gather(1, index), tap.gather(1, phase))
            index += 1
    beyond = torch.arange(output.shape[1], device=device) >= lengths.to(device, non_blocking=True).unsqueeze(1)
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


__all__ = ["fast_fft_size", "long_irfft", "long_rfft", "phase_references", "phase_vocoder", "resample"]
