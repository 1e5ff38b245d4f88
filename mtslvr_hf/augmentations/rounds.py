"""Augmentations of a whole batch in rounds: the number of operators depends neither on the batch nor on the draw.

A clip's list of augmentations is divided into segments by its pitch shift and its time stretch. Inside a segment, each
augmentation is a gain and an addition,

    y = gain * x + norm(x) * noise,

with gains (fades, masks) and noise (colored noise, fillings of masks) that do not depend on x. They are computed
for all segments at once, in a table. In each round, every clip takes its next augmentation from it, whichever it is.
A time shift moves no samples inside a segment: the rest of the segment's table is rolled instead, and the clip at the
end of the segment. Between segments, all pitch shifts and time stretches share one phase vocoder.

Shapes: B clips, A augmentations, R = 2 B rows (both views of each clip), S samples, T rows of the table.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .base import Augmentation, counting, samples_of, sent_together, to_device
from .noise import bins_of, colored, gaussian_pairs, in_time, pairs_of
from .transforms import (
    ColoredNoise,
    Fade,
    MixedNoise,
    PitchShift,
    TimeMasking,
    TimeShift,
    TimeStretch,
    VocoderAugmentation,
    WhiteNoise,
    fade_gains,
    mask_bounds,
    slices_for,
    slices_of_twice,
)
from .vocoder import phase_vocoder

# A subclass may compute something else. So it gets its clips as a group, as all other augmentations do.
TABLED = (Fade, WhiteNoise, MixedNoise, TimeMasking)
VOCODED = (PitchShift, TimeStretch)
SMALLEST_NORM = 1e-19  # noise of one sample has only 0 Hz, so it is silent
Values = Mapping[str, Mapping[str, Tensor]]


def apply_in_rounds(views: Tensor, order: Tensor, values: Values, augmentations: Sequence[Augmentation]) -> None:
    """Augments both views of every clip in place.

    Args:
        views: (B, 2, S) float32, contiguous.
        order, values: As in `AugmentationDraw`, on the CPU.
        augmentations: The augmentations of the draw.
    """
    rows = views.view(-1, views.shape[2])  # (R, S)
    segments, entries = _schedule(order.numpy(), values, augmentations, rows.shape[1])
    table = _table(entries, values, augmentations, rows)
    for segment in _on_device(segments, rows.device):
        if segment.rounds:
            _replace(rows, segment.rows, partial(_take_turns, table=table, rounds=segment.rounds))
        if len(segment.shifted):
            _replace(rows, segment.shifted, partial(slices_of_twice, slices=segment.slices))
        _end_segment(rows, segment, values, augmentations)


# Schedule: which row takes what, when. On the CPU.


class _Entries(NamedTuple):
    """Entries of an augmentation in the table: places there, rows, and samples of the clips that come first there."""

    places: Tensor
    rows: Tensor
    starts: Tensor


class _Segment(NamedTuple):
    """Rows of one segment.

    rows: Rows with entries in the table, those with most of them first.
    rounds: Begin and end in the table of each round; its n-th entry is for the n-th of `rows`.
    shifted, slices: Rows that end shifted, and what they become, for `slices_of_twice`.
    ends: Rows of each augmentation that ends the segment, by its position.
    parameters: Parameters of these rows, by the same position.
    """

    rows: Tensor
    rounds: list[tuple[int, int]]
    shifted: Tensor
    slices: Tensor
    ends: dict[int, Tensor]
    parameters: dict[int, dict[str, Tensor]]


def _schedule(
    order: np.ndarray, values: Values, augmentations: Sequence[Augmentation], samples: int
) -> tuple[list[_Segment], dict[int, _Entries]]:
    # Segments, and entries of the table by position of the augmentation.
    kinds = [type(augmentation) for augmentation in augmentations]
    tabled = np.isin(order, [position for position, kind in enumerate(kinds) if kind in TABLED])  # (B, A)
    ending = (order >= 0) & ~tabled
    moves = np.zeros((*order.shape, 2), np.int64)  # samples that go from a row's end to its beginning
    for position in [position for position, kind in enumerate(kinds) if kind is TimeShift]:
        shifts = samples_of(values[augmentations[position].name]["shift_fraction"], samples).numpy()  # (B, 2)
        moves += (order == position)[:, :, None] * shifts[:, None]
        ending &= order != position

    segment = ending.cumsum(1) - ending  # (B, A)
    together = segment[:, :, None] == segment[:, None, :]  # (B, A, A)
    before = together & np.tri(order.shape[1], k=-1, dtype=bool)
    turn = (before & tabled[:, None]).sum(2)  # (B, A)
    starts = before.astype(np.int64) @ moves % samples  # (B, A, 2)
    rolls = together.astype(np.int64) @ -moves % samples
    counts = [((segment == number) & tabled).sum(1) for number in range(int(segment.max(initial=0)) + 1)]
    ranked = [np.argsort(-count, kind="stable") for count in counts]  # clips with most entries first
    rank = np.array([np.argsort(clips) for clips in ranked])

    clips, column = np.nonzero(tabled)
    by_place = np.lexsort((rank[segment[clips, column], clips], turn[clips, column], segment[clips, column]))
    clips, column = clips[by_place], column[by_place]
    entries = {}
    for position in {*order[clips, column].tolist()}:
        own = np.nonzero(order[clips, column] == position)[0]
        first = torch.from_numpy(starts[clips[own], column[own]].ravel())
        entries[position] = _Entries(_both(own), _both(clips[own]), first)

    segments, place = [], 0
    for number, count in enumerate(counts):
        bounds = np.cumsum([place] + [2 * (count > turn).sum() for turn in range(count.max(initial=0))]).tolist()
        place, inside = bounds[-1], segment == number
        there = np.nonzero(inside.any(1))[0]
        roll = torch.from_numpy(rolls[there, inside[there].argmax(1)].ravel())
        last = np.where(inside & ending, order, -1).max(axis=1, initial=-1)  # (B,)
        ends, parameters = {}, {}
        for position in {*last.tolist()} - {-1}:
            augmentation, rows = augmentations[position], _both(np.nonzero(last == position)[0])
            if augmentation.sort_by is not None:
                rows = rows[_of_rows(values, augmentation, rows)[augmentation.sort_by].argsort()]
            ends[position], parameters[position] = rows, _of_rows(values, augmentation, rows)
        segments.append(
            _Segment(
                rows=_both(ranked[number][: (count > 0).sum()]),
                rounds=list(pairwise(bounds)),
                shifted=_both(there)[roll > 0],
                slices=slices_for(roll[roll > 0], samples),
                ends=ends,
                parameters=parameters,
            )
        )
    return segments, entries


def _both(clips: np.ndarray) -> Tensor:
    # Rows of both views of clips.
    return torch.from_numpy((2 * clips[:, None] + np.arange(2)).ravel())


def _of_rows(values: Values, augmentation: Augmentation, rows: Tensor) -> dict[str, Tensor]:
    return {key: value.flatten()[rows] for key, value in values[augmentation.name].items()}


def _on_device(segments: list[_Segment], device: torch.device) -> list[_Segment]:
    # Segments with rows and slices on the device.
    tensors = [own for s in segments for own in (s.rows, s.shifted, s.slices, *s.ends.values())]
    there = iter(sent_together(tensors, device))
    return [
        segment._replace(
            rows=next(there),
            shifted=next(there),
            slices=next(there),
            ends={position: next(there) for position in segment.ends},
        )
        for segment in segments
    ]


# Table: gains and noise of all entries. On the device.


class _Table(NamedTuple):
    """Gains (T, S), and noise (T, S) for a clip of norm 1."""

    gains: Tensor
    noise: Tensor


def _table(
    entries: dict[int, _Entries], values: Values, augmentations: Sequence[Augmentation], rows: Tensor
) -> _Table:
    size, samples = sum(len(own.places) for own in entries.values()), rows.shape[1]
    table = _Table(rows.new_ones(size, samples), rows.new_zeros(size, samples))
    draws: list[tuple[Tensor, int]] = []
    additions: list[Callable[[_Table, Tensor], None]] = []  # of noise that was drawn
    for places, starts, augmentation, parameters in _computed_together(entries, values, augmentations):
        if isinstance(augmentation, Fade):
            _add_fades(table, places, starts, parameters)
        elif isinstance(augmentation, TimeMasking):
            first, lengths = mask_bounds(parameters, samples)
            draws.append((parameters["noise_seed"], pairs_of(int(lengths.max()))))
            additions.append(
                partial(_add_masks, places=places, first=first - starts, lengths=lengths, fill=parameters["fill"])
            )
        else:
            rate = cast(ColoredNoise, augmentation).sampling_rate
            draws.append((parameters["noise_seed"], bins_of(samples)))
            additions.append(partial(_add_noise, places=places, starts=starts, parameters=parameters, rate=rate))
    if draws:
        for add, pairs in zip(additions, gaussian_pairs(rows.device, *draws), strict=True):
            add(table, pairs)
    return table


def _computed_together(
    entries: dict[int, _Entries], values: Values, augmentations: Sequence[Augmentation]
) -> list[tuple[Tensor, Tensor, Augmentation, dict[str, Tensor]]]:
    # Places, starts, one augmentation, and parameters of all entries that are computed in the same way.
    alike: dict[tuple, list[int]] = {}
    for position in entries:
        augmentation = augmentations[position]
        kind = ColoredNoise if isinstance(augmentation, ColoredNoise) else type(augmentation)
        alike.setdefault((kind, getattr(augmentation, "sampling_rate", None)), []).append(position)
    together = []
    for positions in alike.values():
        places, _, starts = (torch.cat(part) for part in zip(*(entries[position] for position in positions)))
        own = [_of_rows(values, augmentations[position], entries[position].rows) for position in positions]
        parameters = {key: torch.cat([part[key] for part in own]) for key in own[0]}
        together.append((places, starts, augmentations[positions[0]], parameters))
    return together


def _add_fades(table: _Table, places: Tensor, starts: Tensor, parameters: dict[str, Tensor]) -> None:
    by_shape = parameters["shape"].argsort()
    gains = fade_gains({key: value[by_shape] for key, value in parameters.items()}, starts[by_shape], table.gains)
    table.gains.index_copy_(0, places[by_shape].to(gains.device, non_blocking=True), gains)


def _add_noise(
    table: _Table, pairs: Tensor, places: Tensor, starts: Tensor, parameters: dict[str, Tensor], rate: int
) -> None:
    samples = table.noise.shape[1]
    noise = colored(pairs, parameters["exponent"], samples, rate)
    norms = torch.linalg.vector_norm(noise, dim=1, keepdim=True).clamp_(min=SMALLEST_NORM)
    noise.mul_(to_device(torch.pow(10.0, parameters["snr_db"].float() / -20), noise).div(norms))
    moved = starts.nonzero().squeeze(1)
    columns = [places, moved, slices_for(starts[moved], samples)]
    places, moved, slices = sent_together(columns, noise.device)
    if len(moved):
        _replace(noise, moved, partial(slices_of_twice, slices=slices))
    table.noise.index_copy_(0, places, noise)


def _add_masks(table: _Table, pairs: Tensor, places: Tensor, first: Tensor, lengths: Tensor, fill: Tensor) -> None:
    samples, longest = table.noise.shape[1], int(lengths.max())
    levels = to_device(fill.float() / samples**0.5, pairs)
    columns = [first % samples, lengths, places * samples]
    first, lengths, rows = sent_together([column.unsqueeze(1) for column in columns], pairs.device)
    sample = counting(longest, pairs.device)
    index = (sample + first).remainder_(samples).add_(rows).flatten()  # in the flattened table
    outside = sample >= lengths
    noise = (in_time(pairs, longest) * levels).masked_fill_(outside, 0)
    table.noise.view(-1).scatter_(0, index, noise.flatten())
    table.gains.view(-1).scatter_(0, index, outside.float().flatten())


# Computation on the device.


def _replace(rows: Tensor, which: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    rows.index_copy_(0, which, function(rows.index_select(0, which)))


def _take_turns(clips: Tensor, table: _Table, rounds: list[tuple[int, int]]) -> Tensor:
    for begin, end in rounds:
        current = clips[: end - begin]
        norms = torch.linalg.vector_norm(current, dim=1, keepdim=True)
        current.mul_(table.gains[begin:end]).addcmul_(table.noise[begin:end], norms)
    return clips


def _end_segment(rows: Tensor, segment: _Segment, values: Values, augmentations: Sequence[Augmentation]) -> None:
    vocoded: dict[int, list[int]] = {}  # by the size of frames
    for position, which in segment.ends.items():
        augmentation = augmentations[position]
        if type(augmentation) in VOCODED:
            vocoded.setdefault(cast(VocoderAugmentation, augmentation).n_fft, []).append(position)
        else:
            _replace(rows, which, partial(augmentation.apply, parameters=segment.parameters[position]))
    for n_fft, positions in vocoded.items():
        own = [cast(VocoderAugmentation, augmentations[position]) for position in positions]
        _vocode(rows, own, [segment.ends[p] for p in positions], [segment.parameters[p] for p in positions], n_fft)


def _vocode(
    rows: Tensor,
    augmentations: list[VocoderAugmentation],
    which: list[Tensor],
    parameters: list[dict[str, Tensor]],
    n_fft: int,
) -> None:
    samples, sizes = rows.shape[1], [len(own) for own in which]
    clips = [rows.index_select(0, own) for own in which]
    ready = [own.prepare(*part) for own, part in zip(augmentations, zip(clips, parameters, strict=True), strict=True)]
    waveforms, rates, lengths, _ = zip(*ready, strict=True)
    vocoded = phase_vocoder(waveforms, torch.cat(rates), torch.cat(lengths), samples, n_fft).split(sizes)
    for augmentation, place, part, own in zip(augmentations, which, vocoded, parameters, strict=True):
        rows.index_copy_(0, place, augmentation.finish(part, samples, own))


__all__ = ["apply_in_rounds"]
