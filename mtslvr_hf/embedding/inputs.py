"""Inputs of `encode`: recordings of each kind of audio, which are read in blocks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch

from ..audio.errors import BadClipError, decode_errors, summary
from ..audio.libsndfile import BLOCK_SAMPLES
from ..audio.recording import OnTruncated, Recording, decoder_recording, open_recording
from ..feature_extraction_mtslvr import (
    check_shape,
    encoded_file,
    plain_rate,
    split_audio,
    to_float,
    waveform_from_array,
)


class Items(NamedTuple):
    """Items of the argument of `encode`."""

    items: Iterable[Any]
    single: bool  # the argument was one item
    total: int | None  # if known


def items_of(audio: Any, channels_first: bool = False) -> Items:
    """Items of an argument, one or several, by the rules of `encode`.

    Raises:
        TypeError: If it is neither, or a dictionary of splits.
        ValueError: If it is a data set with several audio columns or none, or an array of a wrong or ambiguous shape.
    """
    if "datasets" in sys.modules:  # else there are no objects of it, and the import would take a second
        from .dataset_items import items_of_dataset

        items = items_of_dataset(audio)
        if items is not None:
            return Items(items, False, len(audio) if isinstance(audio, Sized) else None)
    clips, single = split_audio(audio, channels_first)
    return Items(clips, single, len(clips) if isinstance(clips, Sized) else None)


@contextmanager
def open_item(
    item: Any,
    sampling_rate: int | None,
    number: int,
    channels_first: bool = False,
    on_truncated: OnTruncated = "error",
) -> Iterator[Recording]:
    """Context of one opened item.

    Args:
        item: As for `encode`.
        sampling_rate: Rate in Hz of arrays without one.
        number: Index of the item, for messages.
        channels_first: True if a bare array may be (channels, samples).
        on_truncated: See `open_recording`.

    Raises:
        BadClipError: If the item has no audio.
    """
    if isinstance(item, Mapping) and not item.keys() & {"array", "bytes", "path"}:
        item = _audio_of_row(item, number)
    name = _name(item, number)
    file = encoded_file(item)
    if file is not None:
        with open_recording(file, name, on_truncated) as recording:
            yield recording
    elif hasattr(item, "get_all_samples") and hasattr(item, "get_samples_played_in_range"):
        recording = decoder_recording(item, name)
        _agreed_rate(recording.rate, sampling_rate, name)
        yield recording
    elif item is None:
        raise BadClipError("empty", f"{name} is None; leave it out.")
    else:
        samples, rate = _samples_and_rate(item, name)
        rate = _agreed_rate(rate, sampling_rate, name)
        yield _array_recording(samples, rate, number, name, channels_first or samples is not item)


def _audio_of_row(row: Mapping[str, Any], number: int) -> Any:
    """Audio of a data set's row: the column `audio`, or the only value that is audio."""
    if "audio" in row:
        return row["audio"]
    found = [
        value
        for value in row.values()
        if hasattr(value, "get_all_samples") or (isinstance(value, Mapping) and value.keys() & {"array", "bytes"})
    ]
    if len(found) != 1:
        which = "several columns with audio" if found else "no audio"
        raise BadClipError("unreadable", f"Clip {number}: {which} among {', '.join(map(str, row))}; name it `audio`.")
    return found[0]


def _name(item: Any, number: int) -> str:
    path = item.get("path") if isinstance(item, Mapping) else item
    path = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    return f"Clip {number} ({path})" if path else f"Clip {number}"


def _samples_and_rate(item: Any, name: str) -> tuple[Any, Any]:
    """Samples of an item, and its own rate, if any."""
    if isinstance(item, Mapping):
        return item["array"], item.get("sampling_rate")
    if not hasattr(item, "get_all_samples"):
        return item, None
    try:
        decoded = item.get_all_samples()
    except decode_errors() as error:
        raise BadClipError("unreadable", f"{name}: it cannot be decoded: {summary(error)}") from error
    return decoded.data, decoded.sample_rate


def _agreed_rate(own: Any, given: int | None, name: str) -> int:
    """Rate of an item, its own or that of the call."""
    own, given = plain_rate(own), plain_rate(given)
    rate = given if own is None else own
    if rate is None:
        raise BadClipError("unreadable", f"{name} came without a sampling rate: pass `sampling_rate`, in Hz.")
    if own is not None and given is not None and own != given:
        raise BadClipError("unreadable", f"{name} is at {own} Hz, but `sampling_rate` is {given} Hz: omit one.")
    if not isinstance(rate, Real) or not float(rate) > 0 or not float(rate).is_integer():
        raise BadClipError(
            "unreadable", f"{name} has the sampling rate {rate!r}; expected a positive whole number of Hz."
        )
    return int(float(rate))


def _array_recording(samples: Any, rate: int, number: int, name: str, channels_first: bool) -> Recording:
    """Recording of an array, checked as far as possible without reading all samples."""
    try:
        waveform = samples.detach() if isinstance(samples, torch.Tensor) else waveform_from_array(samples, number)
        if waveform.dtype.is_complex:
            raise ValueError(f"Clip {number} is complex; expected real samples.")
        to_float(waveform.new_empty(0), number)  # raises for a type without a full scale
        check_shape(waveform.shape, name, channels_first)
    except ValueError as error:
        raise BadClipError("unreadable", str(error)) from error
    if waveform.numel() == 0:
        raise BadClipError("empty", f"{name} has no samples; leave it out.")
    return Recording(name, rate, partial(_read_array, waveform, number))


def _read_array(waveform: torch.Tensor, number: int) -> Iterator[np.ndarray]:
    """Mono blocks of an array (samples,) or (channels, samples) of any type, without a copy of the whole."""
    size = BLOCK_SAMPLES // (len(waveform) if waveform.ndim == 2 else 1)
    for start in range(0, waveform.shape[-1], size):
        block = to_float(waveform[..., start : start + size], number)
        yield (block.mean(dim=0) if block.ndim == 2 else block).cpu().numpy()


__all__ = ["items_of", "open_item"]
