"""Band-limited resampler with a ratio per clip: changes time and pitch together.

Shapes: B clips, S samples, P periods of the output, K input samples of a row of outputs.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .base import counting, sent_together

GRID_BITS = 10
GRID = 1 << GRID_BITS  # ratios are multiples of 1 / GRID: after GRID outputs, positions between samples repeat
ROW = 64  # outputs from the same input samples
ROWS = GRID // ROW  # rows in a period
SHAPES = 4  # shapes of matrices for an octave of ratios up to 1, on a CPU
LEVELS = 16  # cutoffs for an octave of ratios above 1
LEVELS_TOGETHER = 4  # on a GPU, the highest level of a product is a multiple, so that there are few banks
CROSSINGS = 38  # zero crossings of the filter on either side
CUTOFF = 0.95  # of the highest frequency: -6 dB there, -60 dB at the highest frequency
BETA = 6.17  # of the Kaiser window


def resample(waveforms: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Resamples each clip by step / GRID without aliases, so time and pitch change together.

    The filter is a Kaiser-windowed sinc at exact positions, as matrix products: the ROW outputs of a row are a product
    of the samples around them and a band of filter values, and all periods of a clip share the matrices of their ROWS
    rows. The bands hold many zeros, but it is several times as fast as to gather the samples of each output. Positions
    between samples are multiples of 1 / GRID, so that bands are copies from a bank of filters for all clips. A clip
    that becomes shorter has the cutoff of the next higher ratio 2 ** (n / LEVELS).

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
    levels = _levels(steps)
    groups = _groups(steps, levels, device)
    reach, width = max(group.reach for group in groups), max(group.width for group in groups)
    stride = samples + 2 * reach + width
    first = torch.arange(batch) * stride
    filters = torch.cat([group.first_filters(levels) for group in groups])
    integers = [first, filters, first + samples + reach, steps, lengths]
    begins, filters, ends, periods, behind = sent_together([column.unsqueeze(1) for column in integers], device)

    padded = waveforms.new_zeros(batch, stride)
    padded[:, reach : reach + samples].copy_(waveforms)
    positions = (counting(GRID, device) * periods).unflatten(1, (ROWS, ROW))  # of a period's outputs, in 1 / GRID
    whole = positions >> GRID_BITS
    phases = positions.bitwise_and_(GRID - 1)
    rows = whole[:, :, :1]  # (B, ROWS, 1)
    filters = (rows + filters.unsqueeze(2)).sub(whole)  # (B, ROWS, ROW), in a bank, without the phase
    begins = rows + begins.unsqueeze(2)
    clips = waveforms.new_empty(batch, max(group.periods(samples) for group in groups) * GRID)
    for group in groups:
        own, count = group.clips, group.periods(samples)
        position = torch.addcmul(begins[own], counting(count, device), periods[own].unsqueeze(2))
        position = position.minimum(ends[own].unsqueeze(2))  # (B, ROWS, P); only zeros follow there
        around = padded.flatten()[reach + 1 - group.reach :].unfold(0, group.width, 1)
        inputs = around.index_select(0, position.flatten()).view(-1, count, group.width)
        bank = _bank(group.lowest, group.highest, device).unfold(0, group.width, 1)
        bands = bank.index_select(0, torch.add(filters[own], phases[own], alpha=group.stride).flatten())
        outputs = torch.bmm(inputs, bands.view(-1, ROW, group.width).mT).view(-1, ROWS, count, ROW)
        clips[own].unflatten(1, (-1, ROWS, ROW))[:, :count].copy_(outputs.transpose(1, 2))
    shortest, longest = int(lengths.min()), int(lengths.max())
    beyond = counting(longest, device)[shortest:] >= behind  # the filter rings there
    clips[:, shortest:longest].masked_fill_(beyond, 0)
    return clips[:, :longest], lengths


class _Group(NamedTuple):
    """Clips with similar steps, between `slowest` and `fastest`, and levels, between `lowest` and `highest`."""

    clips: slice
    slowest: int
    fastest: int
    lowest: int
    highest: int

    @property
    def reach(self) -> int:
        """Samples of the input on either side of a position."""
        return _reach(self.highest)

    @property
    def width(self) -> int:
        """Samples of the input for a row."""
        return ROW * self.fastest // GRID + 2 + 2 * self.reach

    @property
    def padding(self) -> int:
        """Zeros between two filters of its bank."""
        return _padding(self.highest)

    @property
    def stride(self) -> int:
        """Values from one filter of its bank to the next."""
        return self.padding + 2 * self.reach

    def first_filters(self, levels: Tensor) -> Tensor:
        """Places of the first filters of its clips, those at phase 0, in its bank."""
        return self.padding + (levels[self.clips] - self.lowest) * GRID * self.stride

    def periods(self, samples: int) -> int:
        """Periods of the output of clips of `samples`."""
        return -(-samples // self.slowest)


def _groups(steps: Tensor, levels: Tensor, device: torch.device) -> list[_Group]:
    # Groups of ascending `steps`. The rounding of a product depends on its shape. So on a CPU, clips share a shape
    # only with similar ratios, and the result of a clip depends on no other clip. A GPU needs few, large products: one
    # for clips that become longer, and one for those that become shorter; other clips change the last bits there.
    on_cpu = device.type == "cpu"
    shapes = (SHAPES * (steps / GRID).log2()).ceil().int().clamp_(max=0) if on_cpu else torch.zeros_like(levels)
    kinds = torch.where(levels < 2, shapes, levels if on_cpu else 2)
    groups, begin = [], 0
    for kind, count in zip(*(part.tolist() for part in kinds.unique_consecutive(return_counts=True)), strict=True):
        own = slice(begin, begin + count)
        begin += count
        slowest, fastest = int(steps[own][0]), int(steps[own][-1])
        lowest, highest = (kind, kind) if kind > 0 else (0, 1)
        if not on_cpu:
            highest = 1 + -(-(int(levels[own][-1]) - 1) // LEVELS_TOGETHER) * LEVELS_TOGETHER if kind else 1
        elif kind > 0:
            slowest, fastest = _fastest(kind - 1), _fastest(kind)
        else:
            slowest, fastest = (int(GRID * 2 ** (bound / SHAPES)) for bound in (kind - 1, kind))
        groups.append(_Group(own, max(slowest, 1), fastest, lowest, highest))
    return groups


def _levels(steps: Tensor) -> Tensor:
    # Levels of the cutoff: 0 for an unchanged clip, which needs no filter, and 1 for those that become longer. Others
    # need a lower cutoff, and so a longer filter.
    levels = (LEVELS * (steps.clamp(min=GRID).double() / GRID).log2()).ceil().long().add_(1)
    return levels.masked_fill_(steps == GRID, 0)


def _cutoff(level: int) -> float:
    return CUTOFF * 2 ** ((1 - level) / LEVELS) if level else 1.0


def _fastest(level: int) -> int:
    return int(GRID * 2 ** (max(level - 1, 0) / LEVELS))


def _reach(level: int) -> int:
    return int(CROSSINGS / _cutoff(level)) + 1


def _padding(level: int) -> int:
    return ROW * _fastest(level) // GRID + 2


@lru_cache(maxsize=64)
def _bank(lowest: int, highest: int, device: torch.device) -> Tensor:
    # Filters of all levels, and of all positions n / GRID between two samples, one behind the other, with zeros
    # before, between and behind them: (values,).
    reach = _reach(highest)
    taps = torch.arange(1 - reach, reach + 1, dtype=torch.float64)
    distance = torch.arange(GRID, dtype=torch.float64).unsqueeze(1) / GRID - taps
    filters = []
    for cutoff in map(_cutoff, range(lowest, highest + 1)):
        crossings = cutoff * distance
        kaiser = torch.i0(BETA * (1 - (crossings / CROSSINGS).square()).clamp_(min=0).sqrt())
        values = torch.sinc(crossings) * kaiser * (cutoff / kaiser.max())
        filters.append(values.masked_fill_(crossings.abs() >= CROSSINGS, 0))
    padding = _padding(highest)
    values = torch.nn.functional.pad(torch.cat(filters).float(), (padding, 0)).flatten()
    return torch.nn.functional.pad(values, (0, padding)).to(device)


__all__ = ["GRID", "resample"]
