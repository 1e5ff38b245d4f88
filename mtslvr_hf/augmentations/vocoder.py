"""Changing time but not pitch: a phase-locked phase vocoder with a rate per clip.

Shapes: B clips, S samples, N frames, K frequency bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import blocks_of_time, to_device

OVERLAP = 4  # frames over each sample: squared Hann windows then add up to a constant, 0.375 * OVERLAP
ONSET_RATIO = 8.0  # a frame whose power is this many times that of the half frame before it begins something new
ENERGY_BLOCK = 32  # samples: the resolution of the onset detector, 2 ms
WEAK = 1e-4  # of a frame's mean power over the bins: 40 dB below a flat spectrum, 65 dB below a lone tone
RUN = 32  # frames
SILENCE = 1e-30  # keeps the direction of 0 defined


def phase_vocoder(waveforms: Tensor, rates: Tensor, lengths: Tensor, num_samples: int, n_fft: int) -> Tensor:
    """Plays every clip `rate` times as fast without changing its pitch.

    Frames of `n_fft` samples (Hann) are read every hop * rate samples and written every hop = n_fft / 4 samples,
    rotated such that every partial continues where the previous frame left it. The phase that a partial advances in
    one hop is measured, not unwrapped: each frame is read twice, at its place and one hop earlier. With X_n and B_n
    these two spectra,

        rotation_n = rotation_(n-1) * direction(X_(n-1) * conj(B_n)),     output_n = X_n * rotation_n,

    so that at rate 1 (B_n = X_(n-1)) the output is the input. Three things keep level and attacks, and keep rounding
    errors from growing along a clip: a direction is that of a sum over neighbouring bins, so that the bins around a
    peak turn together; a bin far below its frame's mean power does not turn; and rotations are counted from the last
    attack, or from the next one as soon as a frame reaches into it, so that an attack sounds as recorded.

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
    lengths = to_device(lengths, waveforms)
    frames = torch.arange(-1, (num_samples - 1 + n_fft // 2 - 1) // hop + 1, device=waveforms.device)
    advance = to_device(rates, waveforms) * hop
    centers = (frames * advance).round_().long()  # (B, N), in samples of the input
    centers = centers.clamp_(min=-n_fft // 2).minimum(lengths + n_fft // 2)  # where frames are empty already
    start = phase_references(waveforms, centers, (advance / 2).ceil().long(), lengths, n_fft // 2)

    padded = F.pad(waveforms, (n_fft + hop, n_fft))
    window = torch.hann_window(n_fft, device=waveforms.device)
    spectra, floors, rotations = _analyse(padded, centers + n_fft // 2, window)
    output = _synthesise(spectra, floors, rotations, start, window / (0.375 * OVERLAP))
    return output[:, n_fft // 2 + hop :][:, :num_samples]


def _analyse(padded: Tensor, starts: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Reads each frame twice, at `starts` (B, N) and a hop later, from `padded` (B, samples). Returns of each later
    # reading its spectrum, complex (B, N, K), and the power below which a bin is weak, (B, N, 1); and the rotation of
    # each bin but the last, counted from the first frame, complex (B, N, K - 1). The last bin, at half the sampling
    # rate, never turns: without it rows are whole vectors, and a clip's result is the same to the bit in any batch.
    batch, count = starts.shape
    n_fft = window.shape[0]
    rows = torch.arange(batch, device=padded.device).unsqueeze(1)
    candidates = padded.unfold(1, n_fft, 1)  # (B, samples, n_fft), a view
    spectra = torch.empty(batch, count, n_fft // 2 + 1, dtype=torch.complex64, device=padded.device)
    rotations = spectra.new_empty(batch, count + -count % RUN, n_fft // 2)
    rotations[:, 0] = rotations[:, count:] = 1
    floors = torch.empty(batch, count, 1, device=padded.device)
    for block in blocks_of_time(0, count, batch * n_fft, padded.device):
        frames = candidates[rows, starts[:, block] + n_fft // OVERLAP].mul_(window)  # (B, block, n_fft)
        floors[:, block] = torch.linalg.vector_norm(frames, dim=2, keepdim=True).square_().mul_(WEAK).add_(SILENCE)
        spectra[:, block] = torch.fft.rfft(frames)
    for block in blocks_of_time(1, count, batch * n_fft, padded.device):
        steps = torch.fft.rfft(candidates[rows, starts[:, block]].mul_(window)).conj_physical_()[..., :-1]
        steps = steps.mul_(spectra[:, block.start - 1 : block.stop - 1, :-1])
        torch.sgn(_over_neighbours(steps).add_(floors[:, block]), out=rotations[:, block])
    return spectra, floors, _running_product(rotations)


def _running_product(steps: Tensor) -> Tensor:
    # Overwrites each of `steps` (B, N, K), N a multiple of RUN, by its product with all earlier ones. First inside all
    # runs of RUN steps at once, then run by run: ten times as fast as cumprod.
    runs = steps.unflatten(1, (-1, RUN))  # (B, N / RUN, RUN, K)
    for step in range(1, RUN):
        runs[:, :, step] *= runs[:, :, step - 1]
    for run in range(1, runs.shape[1]):
        runs[:, run] *= runs[:, run - 1, -1:]
    return steps


def _synthesise(spectra: Tensor, floors: Tensor, rotations: Tensor, start: Tensor, window: Tensor) -> Tensor:
    # The rotated frames added up, frame n at n * hop; rotations count from the frames `start` (B, N) now. Overwrites
    # `spectra`.
    rows = torch.arange(len(spectra), device=spectra.device).unsqueeze(1)
    n_fft = window.shape[0]
    output = window.new_zeros(len(spectra), spectra.shape[1] + OVERLAP - 1, n_fft // OVERLAP)
    for block in blocks_of_time(0, spectra.shape[1], len(spectra) * n_fft, spectra.device):
        spectrum = spectra[:, block, :-1]
        rotation = rotations[rows, start[:, block]].conj_physical_().mul_(rotations[:, block])
        by_power = rotation.mul_(spectrum).mul_(spectrum.conj())
        spectrum *= _over_neighbours(by_power).add_(floors[:, block]).sgn_()
        frames = torch.fft.irfft(spectra[:, block], n=n_fft).mul_(window)
        parts = frames.unflatten(2, (OVERLAP, -1))  # (B, block, OVERLAP, hop)
        for part in reversed(range(OVERLAP)):  # oldest frame first, whatever the blocks: rounding depends on order
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

    An attack is a frame whose samples (center +- reach) have `ONSET_RATIO` times the mean power of the half frame
    before them. Ahead of all attacks phases count from the first frame.

    Args:
        waveforms: (B, S). centers: (B, N). reach: (B, 1). lengths: (B, 1).

    Returns:
        (B, N) int64 frame numbers.
    """
    blocks = F.pad(waveforms, (0, -waveforms.shape[1] % ENERGY_BLOCK)).unflatten(1, (-1, ENERGY_BLOCK))
    energy = torch.linalg.vector_norm(blocks, dim=2).double().square_().cumsum(1)
    energy = F.pad(energy, (1, 0))  # (B, blocks + 1): of all blocks before

    def energy_until(sample: Tensor) -> Tensor:
        return energy.gather(1, (sample // ENERGY_BLOCK).clamp_(0, energy.shape[1] - 1))

    begin = energy_until(centers - reach)
    power = (energy_until(centers + reach) - begin) / (2 * reach)
    power_before = (begin - energy_until(centers - reach - half_frame)) / half_frame
    attack = power > ONSET_RATIO * (power_before + 1e-5 * energy[:, -1:] / lengths)

    frames = torch.arange(centers.shape[1], device=centers.device).expand_as(centers)
    last = torch.where(attack, frames, 0).cummax(1).values
    coming = torch.where(attack, frames, frames.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    near = attack.gather(1, coming) & (centers.gather(1, coming) - centers < half_frame)
    return torch.where(near, coming, last)


__all__ = ["phase_references", "phase_vocoder"]
