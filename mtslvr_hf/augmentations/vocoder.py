"""Phase-locked phase vocoder with a rate per clip: changes time but not pitch.

Shapes: B clips, S samples, N frames, K frequency bins.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import to_device

OVERLAP = 2  # frames over each sample
STEP_REACH = 2  # bins on either side in the mean of the rotation from one frame to the next
PEAK_REACH = 3  # bins on either side that rotate with a bin
ONSET_RATIO = 8.0  # power of a frame with an attack, relative to the half frame before it
ENERGY_BLOCK = 32  # samples: resolution of the attack detector, 2 ms
WEAK = 1e-4  # of a frame's mean power over the bins: 40 dB below a flat spectrum, 65 dB below a lone tone
RUN = 16  # frames
SILENCE = 1e-30  # keeps the direction of 0 defined


def phase_vocoder(waveforms: Tensor, rates: Tensor, lengths: Tensor, num_samples: int, n_fft: int) -> Tensor:
    """Time stretch of every clip by its rate, without change of pitch.

    Frames of `n_fft` samples are read every hop * rate samples and written every hop = n_fft / 2 samples, rotated so
    that the phase of each partial continues from the previous frame. The phase advance in one hop is measured, not
    unwrapped: each frame is read twice, at its place (spectrum X_n) and one hop earlier (B_n):

        rotation_n = rotation_(n-1) * direction(X_(n-1) * conj(B_n)),     output_n = X_n * rotation_n,

    so at rate 1 (B_n = X_(n-1)) the output is the input. Three rules preserve level and attacks and stop rounding
    errors from growing: a direction is that of a sum over neighboring bins, so the bins around a peak rotate together;
    a bin far below the mean power of its frame does not rotate; and rotations count from the last attack, or from the
    next attack if it is in the frame. An attack is read so that it sounds as recorded, at its time.

    Source: Flanagan and Golden (1966) for the vocoder; Laroche and Dolson (1999), section III, for phase locking (here
    with weights instead of peaks); Roebel (2003) for new phases at attacks.

    Args:
        waveforms: (B, S), zero after each clip's length.
        rates: (B,) float64, > 0, on the CPU; > 1 is faster.
        lengths: (B,) int64, samples of each clip, on the CPU.

    Returns:
        (B, num_samples); sample t comes from about sample t * rate.
    """
    hop = n_fft // OVERLAP
    lengths = to_device(lengths, waveforms)
    frames = torch.arange(-1, (num_samples - 1 + n_fft // 2 - 1) // hop + 1, device=waveforms.device)
    advance = to_device(rates, waveforms) * hop
    centers = (frames * advance).round_().long()  # (B, N), in samples of the input
    centers = centers.clamp_(min=-n_fft // 2).minimum(lengths + n_fft // 2)  # frames further out are empty
    reach, widest = (advance / 2).ceil().long(), math.ceil(float(rates.max()) * hop / 2)
    attack, place = find_attacks(waveforms, centers, reach, widest, lengths, n_fft // 2)
    centers, start = hold_attacks(centers, attack, place, to_device(rates, waveforms), hop)

    padded = F.pad(waveforms, (n_fft + hop, n_fft))
    window = _window(n_fft, waveforms.device)
    spectra, floors, rotations = _analyze(padded, (centers + n_fft // 2).t(), window)
    output = _synthesize(spectra, floors, rotations, start.t(), window)
    return output[:, n_fft // 2 + hop :][:, :num_samples]


@lru_cache(maxsize=8)
def _window(n_fft: int, device: torch.device) -> Tensor:
    # (n_fft,), Kaiser-Bessel-derived with alpha = 2: as with the sine window, squares of half windows add up to 1, but
    # the distant bins of a tone, which rotate differently, are weaker.
    kaiser = torch.kaiser_window(n_fft // 2 + 1, periodic=False, beta=2 * torch.pi, dtype=torch.float64).cumsum(0)
    rising = (kaiser[:-1] / kaiser[-1]).sqrt()
    return torch.cat([rising, rising.flip(0)]).float().to(device)


def _analyze(padded: Tensor, starts: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Reads each frame twice, at `starts` (N, B) and a hop later, from `padded` (B, samples). Returns spectra of later
    # frames, complex (N, B, K + 1); the power below which a bin is weak, (N, B, 1); and rotations of the bins from the
    # first frame on, complex (N or more, B, K). The last bin, at half the sampling rate, never rotates.
    frames, batch = starts.shape
    n_fft = window.shape[0]
    rows = starts + torch.arange(batch, device=padded.device) * padded.shape[1]
    longer = padded.flatten().unfold(0, n_fft + n_fft // OVERLAP, 1)  # (samples, n_fft + hop), a view
    reads = longer.index_select(0, rows.flatten()).unflatten(0, rows.shape)  # (N, B, n_fft + hop)
    later = reads[..., n_fft // OVERLAP :] * window
    spectra = torch.fft.rfft(later)
    floors = torch.linalg.vector_norm(later, dim=2, keepdim=True).square_().mul_(WEAK).add_(SILENCE)
    earlier = torch.fft.rfft(torch.mul(reads[..., :n_fft], window, out=later))[1:]
    steps, buffer = _with_neighbors(frames - 1, batch, n_fft // 2, STEP_REACH, padded.device)
    own = steps[..., STEP_REACH:-STEP_REACH]
    torch.mul(earlier.conj_physical_()[..., :-1], spectra[:-1, :, :-1], out=own)
    rotations = spectra.new_empty(frames + -frames % RUN, batch, n_fft // 2)
    rotations[0] = 1
    rotations[frames:] = 1
    torch.sgn(_over_neighbors(steps, buffer, STEP_REACH).add_(floors[1:]), out=rotations[1:frames])
    return spectra, floors, _running_product(rotations)


def _running_product(steps: Tensor) -> Tensor:
    # Cumulative product of `steps` (N, B, K), N a multiple of RUN, in place: first inside all runs of RUN steps at
    # once, then over runs. It is ten times as fast as cumprod.
    runs = steps.unflatten(0, (-1, RUN))  # (N / RUN, RUN, B, K)
    for step in range(1, RUN):
        runs[:, step] *= runs[:, step - 1]
    for run in range(1, runs.shape[0]):
        runs[run] *= runs[run - 1, -1]
    return steps


def _synthesize(spectra: Tensor, floors: Tensor, rotations: Tensor, start: Tensor, window: Tensor) -> Tensor:
    # Sum of rotated frames, frame n at n * hop: (B, samples). Rotations count from frames `start` (N, B). Overwrites
    # `spectra`.
    frames, batch = start.shape
    bins = spectra[..., :-1]
    rotation = rotations[start, torch.arange(batch, device=start.device)].conj_physical_()
    rotation.mul_(rotations[:frames]).mul_(bins)
    by_power, buffer = _with_neighbors(frames, batch, bins.shape[2], PEAK_REACH, start.device)
    torch.mul(rotation, bins.conj(), out=by_power[..., PEAK_REACH:-PEAK_REACH])
    bins *= torch.sgn(_over_neighbors(by_power, buffer, PEAK_REACH).add_(floors), out=rotation)
    parts = torch.fft.irfft(spectra, n=len(window)).mul_(window).unflatten(2, (OVERLAP, -1))
    output = parts.new_zeros(frames + OVERLAP - 1, *parts.shape[1::2])  # (N + 1, B, hop)
    for part in reversed(range(OVERLAP)):  # oldest frame first: rounding depends on the order
        output[part : part + frames] += parts[:, :, part]
    return output.transpose(0, 1).flatten(1)


def _with_neighbors(frames: int, batch: int, bins: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # Two buffers (N, B, K + 2 * reach) for `_over_neighbors`; the `reach` first and last columns of the first are 0.
    values = torch.empty(frames, batch, bins + 2 * reach, dtype=torch.complex64, device=device)
    values[..., :reach] = 0
    values[..., -reach:] = 0
    return values, torch.empty_like(values)


def _over_neighbors(values: Tensor, buffer: Tensor, reach: int) -> Tensor:
    # Sums over bins k - reach..k + reach with binomial weights, (N, B, K + 2 * reach) -> (N, B, K); overwrites both.
    # Rows are added as one long vector, which is faster; sums across rows stay outside of K.
    for _ in range(reach):
        flat, other = values.view(-1), buffer.view(-1)
        torch.add(flat[:-1], flat[1:], out=other[:-1])
        torch.add(other[:-1], other[1:], out=flat[:-1])
    return values[..., : values.shape[2] - 2 * reach]


def find_attacks(
    waveforms: Tensor, centers: Tensor, reach: Tensor, widest: int, lengths: Tensor, half_frame: int
) -> tuple[Tensor, Tensor]:
    """Frames with an attack, and the place of the attack.

    The samples of such a frame (center +- reach) have `ONSET_RATIO` times the mean power of the half frame before. The
    attack is at the first block with that power.

    Args:
        waveforms: (B, S). centers: (B, N). reach: (B, 1), at most `widest`. lengths: (B, 1).

    Returns:
        (B, N) bool, frames with an attack; (B, N) int64, first sample of the attack's block in the clip.
    """
    blocks = F.pad(waveforms, (0, -waveforms.shape[1] % ENERGY_BLOCK)).unflatten(1, (-1, ENERGY_BLOCK))
    powers = torch.linalg.vector_norm(blocks, dim=2).square_()  # (B, blocks), times ENERGY_BLOCK
    energy = F.pad(powers.double().cumsum(1), (1, 0))  # (B, blocks + 1): of all blocks before

    def block_of(sample: Tensor) -> Tensor:
        return (sample // ENERGY_BLOCK).clamp_(0, powers.shape[1])

    first, behind = block_of(centers - reach), block_of(centers + reach)
    begin = energy.gather(1, first)
    power = (energy.gather(1, behind) - begin) / (2 * reach)
    power_before = (begin - energy.gather(1, block_of(centers - reach - half_frame))) / half_frame
    least = ONSET_RATIO * (power_before + 1e-5 * energy[:, -1:] / lengths)
    attack = power > least

    candidates = torch.arange(2 * widest // ENERGY_BLOCK + 1, device=waveforms.device)
    candidates = (candidates + first.unsqueeze(2)).clamp_(max=powers.shape[1] - 1)  # (B, N, C)
    high = powers.gather(1, candidates.flatten(1)).view_as(candidates) > ENERGY_BLOCK * least.unsqueeze(2)
    place = torch.where(high, candidates, powers.shape[1]).amin(2) * ENERGY_BLOCK
    return attack, torch.where(place < centers + reach, place, centers)


def hold_attacks(centers: Tensor, attack: Tensor, place: Tensor, rates: Tensor, hop: int) -> tuple[Tensor, Tensor]:
    """Moves frames with an attack, so that it sounds once, unchanged, and at its time.

    The attack of frame n sounds in that frame and in the frame after or before it. Both are read a hop apart, as they
    are written, so that the attack is at place / rate. Phases of both and of later frames count from frame n; before
    all attacks they count from the first frame.

    Args:
        centers: (B, N), centers of frames in the input. attack, place: (B, N), from `find_attacks`. rates: (B, 1).

    Returns:
        (B, N) new centers; (B, N) int64, for each frame the number of the frame from which its phases count.
    """
    frames = torch.arange(centers.shape[1], device=centers.device)
    written = (frames - 1) * hop  # (N,) center of each frame in the output
    heard = (place / rates).round_().long()
    late = heard > written
    begin = place - heard + written  # (B, N) center of a frame with an attack
    follows, leads = attack & late, attack & ~late
    start = torch.where(attack, frames, 0).cummax(1).values
    start[:, :-1] = torch.where(leads[:, 1:] & ~attack[:, :-1], frames[1:], start[:, :-1])
    centers = centers.clone()
    centers[:, 1:] = torch.where(follows[:, :-1], begin[:, :-1] + hop, centers[:, 1:])
    centers[:, :-1] = torch.where(leads[:, 1:], begin[:, 1:] - hop, centers[:, :-1])
    return torch.where(attack, begin, centers), start


__all__ = ["phase_vocoder"]
