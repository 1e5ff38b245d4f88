"""Band-limited resampler with a ratio per clip: changes time and pitch together.

Shapes: B clips, S samples, P periods of the output, K input samples of a row of outputs.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .base import counting, sent_together

GRID = 1024  # ratios are multiples of 1 / GRID: after GRID outputs, positions between samples repeat
ROW = 64  # outputs from the same input samples
ROWS = GRID // ROW  # rows in a period
SHAPES = 4  # shapes of matrices for the ratios of an octave, on a CPU
CROSSINGS = 38  # zero crossings of the filter on either side
CUTOFF = 0.95  # of the highest frequency: -6 dB there, -60 dB at the highest frequency
BETA = 6.17  # of the Kaiser window
FINENESS = 2048  # entries of the filter table between two zero crossings: rounding errors below -70 dB


def resample(waveforms: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Resamples each clip by step / GRID without aliases, so time and pitch change together.

    The filter is a Kaiser-windowed sinc at exact positions, as matrix products: the ROW outputs of a row are a product
    of the samples around them and a band of filter values, and all periods of a clip share the matrices of their ROWS
    rows. The bands hold many zeros, but it is several times as fast as to gather the samples of each output.

    Args:
        waveforms: (B, S).
        steps: (B,) int64, > 0, on the CPU: input samples per GRID output samples.

    Returns:
        Clips (B, longest), whose sample t is the input at t * step / GRID, and zeros after each clip's new length; and
        the new lengths, (B,) int64 on the CPU.
    """
    if (steps.diff() < 0).any():
        order = steps.argsort()
        clips, lengths = resample(waveforms[order.to(waveforms.device, non_blocking=True)], steps[order])
        back = order.argsort()
        return clips[back.to(waveforms.device, non_blocking=True)], lengths[back]
    (batch, samples), device = waveforms.shape, waveforms.device
    lengths = (samples * GRID + steps - 1) // steps
    groups = _groups(steps, device)
    reach, width = max(group.reach for group in groups), max(group.width for group in groups)
    stride = samples + 2 * reach + width
    # A faster clip needs a lower cutoff and so a longer filter; an unchanged clip needs none.
    cutoffs = torch.where(steps == GRID, 1.0, CUTOFF * GRID / steps.clamp(min=GRID).double()).unsqueeze(1)
    rows = steps.unsqueeze(1) * torch.arange(ROWS)  # (B, ROWS): first positions of rows, in 1 / ROWS samples
    first = torch.arange(batch).unsqueeze(1) * stride
    integers = [first + rows // ROWS, first + samples + reach, steps.unsqueeze(1), lengths.unsqueeze(1)]
    begins, ends, periods, behind = sent_together(integers, device)
    # Positions as entries of the filter's table: that of the first output of a row, and the distance to the next.
    numbers = [FINENESS * cutoffs * (rows % ROWS / ROWS) + (CROSSINGS * FINENESS + 0.5)]
    numbers += [FINENESS / GRID * cutoffs * steps.unsqueeze(1), FINENESS * cutoffs, cutoffs]
    phases, spacings, fineness, cutoffs = sent_together([number.float() for number in numbers], device)

    padded = waveforms.new_zeros(batch, stride)
    torch.mul(waveforms, cutoffs, out=padded[:, reach : reach + samples])
    places = torch.addcmul(phases.unsqueeze(2), counting(ROW, device, torch.float32), spacings.unsqueeze(2))
    clips = waveforms.new_empty(batch, max(group.periods(samples) for group in groups) * GRID)
    for group in groups:
        own, count = group.clips, group.periods(samples)
        position = torch.addcmul(begins[own].unsqueeze(2), counting(count, device), periods[own].unsqueeze(2))
        position = position.minimum(ends[own].unsqueeze(2))  # (B, ROWS, P); only zeros follow there
        around = padded.flatten()[reach + 1 - group.reach :].unfold(0, group.width, 1)
        inputs = around.index_select(0, position.flatten()).view(-1, count, group.width)
        outputs = torch.bmm(inputs, _filters(places[own], fineness[own], group)).view(-1, ROWS, count, ROW)
        clips[own].unflatten(1, (-1, ROWS, ROW))[:, :count].copy_(outputs.transpose(1, 2))
    shortest, longest = int(lengths.min()), int(lengths.max())
    beyond = counting(longest, device)[shortest:] >= behind  # the filter rings there
    clips[:, shortest:longest].masked_fill_(beyond, 0)
    return clips[:, :longest], lengths


class _Group(NamedTuple):
    """Clips with similar steps, from `slowest` to `fastest`."""

    clips: slice
    slowest: int
    fastest: int

    @property
    def reach(self) -> int:
        """Samples of the input on either side of a position."""
        return int(CROSSINGS / CUTOFF * max(1, self.fastest / GRID)) + 1

    @property
    def width(self) -> int:
        """Samples of the input for a row."""
        return ROW * self.fastest // GRID + 2 + 2 * self.reach

    def periods(self, samples: int) -> int:
        """Periods of the output of clips of `samples`."""
        return -(-samples // self.slowest)


def _groups(steps: Tensor, device: torch.device) -> list[_Group]:
    # Groups of ascending `steps`. The rounding of a product depends on its shape. So on a CPU, clips share a shape
    # only with similar ratios, and the result of a clip depends on no other clip. A GPU needs few, large products: one
    # for clips that become longer, and one for those that become shorter; other clips change the last bits there.
    on_cpu = device.type == "cpu"
    kinds = (SHAPES * (steps / GRID).log2()).ceil().int() if on_cpu else (steps > GRID).int()
    groups, begin = [], 0
    for kind, count in zip(*(part.tolist() for part in kinds.unique_consecutive(return_counts=True)), strict=True):
        own = slice(begin, begin + count)
        if on_cpu:
            slowest, fastest = (int(GRID * 2 ** (bound / SHAPES)) for bound in (kind - 1, kind))
            groups.append(_Group(own, max(slowest, 1), fastest))
        else:
            groups.append(_Group(own, int(steps[begin]), int(steps[own][-1])))
        begin += count
    return groups


def _filters(places: Tensor, fineness: Tensor, group: _Group) -> Tensor:
    # (B * ROWS, K, ROW): weights of K samples in each output of a row.
    taps = _integers(1 - group.reach, 1 - group.reach + group.width, places.device) * fineness  # (B, K)
    entries = places.unsqueeze(2) - taps[:, None, :, None]  # (B, ROWS, K, ROW)
    entries = entries.clamp_(0, 2 * CROSSINGS * FINENESS).int()
    return _windowed_sinc(places.device).index_select(0, entries.flatten()).view(-1, group.width, ROW)


def _integers(first: int, behind: int, device: torch.device) -> Tensor:
    limit = 1 << max(-first, behind).bit_length()
    return _integers_around_zero(limit, device)[limit + first : limit + behind]


@lru_cache(maxsize=16)
def _integers_around_zero(limit: int, device: torch.device) -> Tensor:
    return torch.arange(-limit, limit, dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def _windowed_sinc(device: torch.device) -> Tensor:
    # (2 * CROSSINGS * FINENESS + 1,): the filter at distances of 1 / FINENESS zero crossings, 0 at both ends.
    distance = torch.arange(CROSSINGS * FINENESS + 1, dtype=torch.float64) / FINENESS
    kaiser = torch.i0(BETA * (1 - (distance / CROSSINGS).square()).sqrt())
    values = torch.sinc(distance) * kaiser / kaiser[0]
    values[-1] = 0
    return torch.cat([values.flip(0), values[1:]]).float().to(device)


__all__ = ["GRID", "resample"]
