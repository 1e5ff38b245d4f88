"""Band-limited resampler with a ratio per clip: changes time and pitch together.

Shapes: B clips, S samples, P periods of the output, K input samples of a row of outputs.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import to_device

GRID = 1024  # ratios are multiples of 1 / GRID: after GRID outputs, positions between samples repeat
ROW = 64  # outputs from the same input samples
ROWS = GRID // ROW  # rows in a period
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
    lengths = (waveforms.shape[1] * GRID + steps - 1) // steps
    clips = waveforms.new_zeros(len(waveforms), int(lengths.max()))
    # The rounding of a product depends on its shape. So clips share a shape only with similar ratios, and the result
    # of a clip depends on no other clip.
    half_octaves = (2 * (steps / GRID).log2()).ceil().int()
    for half_octave in half_octaves.unique().tolist():
        group = torch.nonzero(half_octaves == half_octave).squeeze(1)
        slowest, fastest = (int(GRID * 2 ** (bound / 2)) for bound in (half_octave - 1, half_octave))
        rows = group.to(waveforms.device, non_blocking=True)
        outputs = _resample_alike(waveforms[rows], steps[group], max(slowest, 1), fastest)[:, : clips.shape[1]]
        clips[rows, : outputs.shape[1]] = outputs
    beyond = torch.arange(clips.shape[1], device=waveforms.device) >= to_device(lengths, waveforms)
    return clips.masked_fill_(beyond, 0), lengths


def _resample_alike(waveforms: Tensor, steps: Tensor, slowest: int, fastest: int) -> Tensor:
    # Clips (B, P * GRID) with steps from `slowest` to `fastest`; the filter rings after their ends.
    batch, samples = waveforms.shape
    periods = -(-samples // slowest)
    reach = int(CROSSINGS / CUTOFF * max(1, fastest / GRID)) + 1  # samples of the input on either side of a position
    width = ROW * fastest // GRID + 2 + 2 * reach

    padded = F.pad(waveforms, (reach - 1, width))
    rows = torch.arange(periods * ROWS, device=waveforms.device).view(periods, ROWS).t()
    rows = rows * to_device(steps, waveforms).unsqueeze(2)  # (B, ROWS, P), in 1 / ROWS samples
    begins = (rows // ROWS).clamp_(max=samples + reach - 1)  # only zeros follow there
    begins += torch.arange(batch, device=waveforms.device).view(-1, 1, 1) * padded.shape[1]
    inputs = padded.flatten().unfold(0, width, 1).index_select(0, begins.flatten())
    inputs = inputs.view(batch * ROWS, periods, width)
    outputs = torch.bmm(inputs, _filters(steps, reach, width, waveforms.device))  # (B * ROWS, P, ROW)
    return outputs.unflatten(0, (batch, ROWS)).transpose(1, 2).flatten(1)  # (B, P * ROWS * ROW)


def _filters(steps: Tensor, reach: int, width: int, device: torch.device) -> Tensor:
    # (B * ROWS, K, ROW): weights of K samples in each output of a row. Distances are exact in float32. A faster clip
    # needs a lower cutoff and so a longer filter; an unchanged clip needs none.
    steps = steps.float().to(device, non_blocking=True).view(-1, 1, 1, 1)
    first = (torch.arange(ROWS, device=device).view(-1, 1, 1) * steps).remainder_(ROWS).mul_(GRID // ROWS)
    places = torch.arange(ROW, device=device) * steps + first  # (B, ROWS, 1, ROW), in 1 / GRID samples
    samples = GRID * (torch.arange(width, device=device).unsqueeze(1) - (reach - 1))  # (K, 1)
    cutoffs = torch.where(steps == GRID, 1.0, CUTOFF * GRID / steps.clamp(min=GRID))
    entries = (places - samples).abs_().mul_(cutoffs * (FINENESS / GRID)).round_()  # (B, ROWS, K, ROW)
    entries = entries.clamp_(max=CROSSINGS * FINENESS).int()
    return _windowed_sinc(device).index_select(0, entries.flatten()).view(entries.shape).mul_(cutoffs).flatten(0, 1)


@lru_cache(maxsize=8)
def _windowed_sinc(device: torch.device) -> Tensor:
    # (CROSSINGS * FINENESS + 1,): the filter at distances of 1 / FINENESS zero crossings, 0 at the end.
    distance = torch.arange(CROSSINGS * FINENESS + 1, dtype=torch.float64) / FINENESS
    kaiser = torch.i0(BETA * (1 - (distance / CROSSINGS).square()).sqrt())
    values = torch.sinc(distance) * kaiser / kaiser[0]
    values[-1] = 0
    return values.float().to(device)


__all__ = ["GRID", "resample"]
