"""Phase-locked phase vocoder with a rate per clip: changes time but not pitch.

Shapes: B clips, S samples, N frames, K frequency bins.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .base import counting, sent_together

OVERLAP = 2  # frames over each sample
STEP_REACH = 2  # bins on either side in the mean of the rotation from one frame to the next
PEAK_REACH = 3  # bins on either side that rotate with a bin
ONSET_RATIO = 8.0  # power of a frame with an attack, relative to the half frame before it
ENERGY_BLOCK = 32  # samples: resolution of the attack detector, 2 ms
WEAK = 1e-4  # of a frame's mean power over the bins: 40 dB below a flat spectrum, 65 dB below a lone tone
RUN = 16  # frames
SILENCE = 1e-30  # keeps the direction of 0 defined


def phase_vocoder(waveforms: Sequence[Tensor], rates: Tensor, lengths: Tensor, num_samples: int, n_fft: int) -> Tensor:
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
        waveforms: One or more batches of clips, (B, S) together, S of its own for each; zero after each clip's length.
        rates: (B,) float64, > 0, on the CPU; > 1 is faster.
        lengths: (B,) int64, samples of each clip, on the CPU.

    Returns:
        (B, num_samples); sample t comes from about sample t * rate.
    """
    hop, device, batch = n_fft // OVERLAP, waveforms[0].device, len(rates)
    margin = -(-(n_fft + hop) // ENERGY_BLOCK) * ENERGY_BLOCK
    sounding = -(-max(clips.shape[1] for clips in waveforms) // ENERGY_BLOCK) * ENERGY_BLOCK
    padded = waveforms[0].new_zeros(batch, margin + sounding + n_fft)
    for part, clips in zip(padded.split([len(clips) for clips in waveforms]), waveforms, strict=True):
        part[:, margin : margin + clips.shape[1]].copy_(clips)
    reach = (rates * hop / 2).ceil().long()  # samples on either side of a frame's center that its attack may be in
    needed = ENERGY_BLOCK * ONSET_RATIO  # power of a block of an attack, relative to the mean power before
    scales = torch.stack([torch.full_like(rates, needed * 2 / n_fft), ENERGY_BLOCK * 0.5 / reach], dim=1)
    numbers = [rates * hop, rates, 1e-5 * needed / lengths, scales]
    advance, rates, faint, scales = sent_together([number.unsqueeze(-1) for number in numbers], device)
    edges = torch.stack([-reach - n_fft // 2, -reach, reach], dim=1)
    first = torch.arange(batch) * padded.shape[1] + margin - n_fft // 2 - hop  # sample in `padded` of a frame at 0
    integers = [-n_fft // 2 + 0 * lengths, lengths + n_fft // 2, edges, first]
    lowest, highest, edges, first = sent_together([integer.unsqueeze(-1) for integer in integers], device)

    frames = counting((num_samples - 1 + n_fft // 2 - 1) // hop + 2, device) - 1  # (N,)
    centers = torch.mul(frames, advance).round_()  # (B, N) float64, in samples of the input
    centers = centers.clamp_(min=lowest, max=highest)  # frames further out are empty
    powers = torch.linalg.vector_norm(padded[:, margin:-n_fft].unflatten(1, (-1, ENERGY_BLOCK)), dim=2).square_()
    attack, place = find_attacks(powers, centers, edges, scales, faint, int(reach.max()))
    centers, start = hold_attacks(centers, attack, place, rates, frames * hop, hop)
    window = _window(n_fft, device)
    spectra, floors, rotations = _analyze(padded, (centers + first).t(), window)
    return _synthesize(spectra, floors, rotations, start.t(), window)[:, :num_samples]


@lru_cache(maxsize=8)
def _window(n_fft: int, device: torch.device) -> Tensor:
    # (n_fft,), Kaiser-Bessel-derived with alpha = 2: as with the sine window, squares of half windows add up to 1, but
    # the distant bins of a tone, which rotate differently, are weaker.
    kaiser = torch.kaiser_window(n_fft // 2 + 1, periodic=False, beta=2 * torch.pi, dtype=torch.float64).cumsum(0)
    rising = (kaiser[:-1] / kaiser[-1]).sqrt()
    return torch.cat([rising, rising.flip(0)]).float().to(device)


def _analyze(padded: Tensor, starts: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Reads each frame twice, at `starts` (N, B) float64 in the flattened `padded`, and a hop later. Returns spectra of
    # later frames, complex (N, B, K + 1); the power below which a bin is weak, (N, B, 1); and rotations of the bins
    # from the first frame on, complex (N, B, K). The last bin, at half the sampling rate, never rotates.
    frames, batch = starts.shape
    n_fft = window.shape[0]
    longer = padded.flatten().unfold(0, n_fft + n_fft // OVERLAP, 1)  # (samples, n_fft + hop), a view
    samples = starts.to(torch.int64, memory_format=torch.contiguous_format).flatten()
    reads = longer.index_select(0, samples).unflatten(0, starts.shape)  # (N, B, n_fft + hop)
    later = reads[..., n_fft // OVERLAP :] * window
    spectra = torch.fft.rfft(later)
    floors = torch.linalg.vector_norm(later, dim=2, keepdim=True).square_().mul_(WEAK).add_(SILENCE)
    earlier = torch.fft.rfft(torch.mul(reads[..., :n_fft], window, out=later))[1:]
    steps = _Neighbors((frames - 1, batch, n_fft // 2), STEP_REACH, padded.device)
    torch.mul(earlier.conj_physical_()[..., :-1], spectra[:-1, :, :-1], out=steps.values)
    rotations = spectra.new_empty(frames, batch, n_fft // 2)
    rotations[0].fill_(1)
    torch.sgn(steps.sum().add_(floors[1:]), out=rotations[1:])
    return spectra, floors, _running_product(rotations)


def _running_product(steps: Tensor) -> Tensor:
    # Cumulative product of `steps` (N, B, K). On a CPU: in place, first inside all runs of RUN steps at once, then
    # over runs; it is ten times as fast as cumprod there. On a GPU, cumprod is a single kernel.
    if steps.device.type != "cpu":
        return steps.cumprod(0)
    for step in range(1, RUN):
        later = steps[step::RUN]
        later.mul_(steps[step - 1 :: RUN][: len(later)])
    for begin in range(RUN, len(steps), RUN):
        steps[begin : begin + RUN].mul_(steps[begin - 1])
    return steps


def _synthesize(spectra: Tensor, floors: Tensor, rotations: Tensor, start: Tensor, window: Tensor) -> Tensor:
    # Sum of rotated frames, frame n at (n - 1) * hop: (B, samples). Rotations count from frames `start` (N, B).
    # Overwrites `spectra`.
    (frames, batch), hop = start.shape, len(window) // OVERLAP
    bins = spectra[..., :-1]
    reference = torch.add(counting(batch, start.device), start, alpha=batch)  # (N, B), in flattened `rotations`
    rotation = rotations.flatten(0, 1).index_select(0, reference.flatten()).view_as(rotations).conj_physical_()
    rotation.mul_(rotations).mul_(bins)
    by_power = _Neighbors(bins.shape, PEAK_REACH, start.device)
    torch.mul(rotation, bins.conj(), out=by_power.values)
    bins.mul_(torch.sgn(by_power.sum().add_(floors), out=rotation))
    parts = torch.fft.irfft(spectra, n=len(window)).mul_(window).unflatten(2, (OVERLAP, hop))
    output = parts.new_empty(batch, frames - 1, hop)
    torch.add(parts[1:-1, :, 1], parts[2:, :, 0], out=output[:, :-1].transpose(0, 1))
    output[:, -1].copy_(parts[-1, :, 1])
    return output.flatten(1)


class _Neighbors:
    """Sums over bins k - reach..k + reach with binomial weights; `values` (N, B, K) are to be written."""

    def __init__(self, shape: tuple[int, ...], reach: int, device: torch.device):
        (frames, batch, bins), row = shape, shape[2] + reach
        # Rows follow each other with zeros before, between and behind them. They are added as one long vector, which
        # is faster; sums across rows stay outside of K.
        self._flat = torch.empty(frames * batch * row + reach, dtype=torch.complex64, device=device)
        self._flat.as_strided((frames * batch + 1, reach), (row, 1)).zero_()
        self._reach, self._layout = reach, ((frames, batch, bins), (batch * row, row, 1))
        self.values = self._flat.as_strided(*self._layout, reach)

    def sum(self) -> Tensor:
        """Sums (N, B, K); overwrites `values`."""
        flat, other = self._flat, torch.empty_like(self._flat)
        for _ in range(self._reach):
            torch.add(flat[:-1], flat[1:], out=other[:-1])
            torch.add(other[:-1], other[1:], out=flat[:-1])
        return flat.as_strided(*self._layout, 0)


def find_attacks(
    powers: Tensor, centers: Tensor, edges: Tensor, scales: Tensor, faint: Tensor, widest: int
) -> tuple[Tensor, Tensor]:
    """Frames with an attack, and the place of the attack.

    The samples of such a frame have `ONSET_RATIO` times the mean power of the half frame before. The attack is at the
    first block with that power.

    Args:
        powers: (B, blocks), power of each block of the clip.
        centers: (B, N) float64.
        edges: (B, 3, 1), first sample of the half frame before, of the frame's samples, and sample behind them,
            relative to the center; the last one is at most `widest`.
        scales: (B, 2, 1), power of a block of an attack in relation to the energy before; mean power of a block of the
            frame's samples in relation to their energy.
        faint: (B, 1), least power of a block of an attack in relation to the clip's energy.

    Returns:
        (B, N) bool, frames with an attack; (B, N), first sample of the attack's block in the clip.
    """
    energy = powers.new_zeros(len(powers), powers.shape[1] + 1, dtype=torch.float64)  # of all blocks before
    torch.cumsum(powers, 1, dtype=torch.float64, out=energy[:, 1:])
    blocks = (centers.unsqueeze(1) + edges).div_(ENERGY_BLOCK).clamp_(0, powers.shape[1]).long()
    at_edges = energy.gather(1, blocks.flatten(1)).view_as(blocks)  # (B, 3, N)
    needed, power = (at_edges[:, 1:] - at_edges[:, :-1]).mul_(scales).unbind(1)
    needed = torch.addcmul(needed, energy[:, -1:], faint)
    attack = power > needed

    candidates = counting(2 * widest // ENERGY_BLOCK + 1, powers.device)
    candidates = (candidates + blocks[:, 1].unsqueeze(2)).clamp_(max=powers.shape[1] - 1)  # (B, N, C)
    low = powers.gather(1, candidates.flatten(1)).view_as(candidates) <= needed.unsqueeze(2)
    place = candidates.masked_fill_(low, powers.shape[1]).amin(2).mul_(ENERGY_BLOCK)
    return attack, torch.where(place < centers + edges[:, 2], place, centers)


def hold_attacks(
    centers: Tensor, attack: Tensor, place: Tensor, rates: Tensor, written: Tensor, hop: int
) -> tuple[Tensor, Tensor]:
    """Moves frames with an attack, so that it sounds once, unchanged, and at its time.

    The attack of frame n sounds in that frame and in the frame after or before it. Both are read a hop apart, as they
    are written, so that the attack is at place / rate. Phases of both and of later frames count from frame n; before
    all attacks they count from the first frame.

    Args:
        centers: (B, N) float64, centers of frames in the input; overwritten.
        attack, place: (B, N), from `find_attacks`.
        rates: (B, 1).
        written: (N,), centers of frames in the output, `hop` samples apart.

    Returns:
        (B, N) new centers; (B, N) int64, for each frame the number of the frame from which its phases count.
    """
    frames = counting(len(written), centers.device)
    heard = (place / rates).round_()
    follows = attack & (heard > written)
    leads = attack ^ follows
    begin = place.sub(heard).add_(written)  # (B, N) center of a frame with an attack
    start = (frames * attack).cummax(1).values
    torch.where(leads[:, 1:] > attack[:, :-1], frames[1:], start[:, :-1], out=start[:, :-1])
    torch.where(follows[:, :-1], begin[:, :-1] + hop, centers[:, 1:], out=centers[:, 1:])
    torch.where(leads[:, 1:], begin[:, 1:] - hop, centers[:, :-1], out=centers[:, :-1])
    return torch.where(attack, begin, centers), start


__all__ = ["phase_vocoder"]
