"""Inputs of `encode`: each kind of audio becomes a recording that is read in blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from numbers import Number, Real
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from ..audio.errors import DECODE_ERRORS, BadClipError, summary
from ..audio.recording import BLOCK_SAMPLES, Recording, decoder_recording, open_recording
from ..data.sources import audio_rows
from ..feature_extraction_mtslvr import MAX_CHANNELS, to_float, waveform_from_array

KINDS = (
    "a path, a URL, an array or tensor of shape (samples,) or (channels, samples), a list of numbers, a dictionary "
    "with `array` and `sampling_rate` or with `bytes` or `path`, a data set's row or a decoder"
)


class Items(NamedTuple):
    """The items of one argument.

    Attributes:
        items: What to iterate.
        single: Whether the argument was one item.
        total: How many there are, if that is known.
    """

    items: Iterable[Any]
    single: bool
    total: int | None


def items_of(audio: Any) -> Items:
    """Tells one item from several, by the rules of `encode`.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is a data set of several audio columns, or of none.
    """
    if isinstance(audio, (datasets.Dataset, datasets.IterableDataset)):
        return Items(_rows(audio), False, len(audio) if isinstance(audio, datasets.Dataset) else None)
    if isinstance(audio, np.ndarray) and audio.dtype.kind in "OSU":  # of paths
        return Items(audio, False, len(audio))
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return Items(audio, False, len(audio)) if audio.ndim == 3 else Items([audio], True, 1)
    if isinstance(audio, (str, os.PathLike, bytes, bytearray, Mapping)) or hasattr(audio, "get_all_samples"):
        return Items([audio], True, 1)
    if isinstance(audio, (list, tuple)):
        single = len(audio) > 0 and _is_waveform(audio)
        return Items([audio], True, 1) if single else Items(audio, False, len(audio))
    if isinstance(audio, Iterable) and not hasattr(audio, "read"):  # an open file would be iterated by lines
        return Items(audio, False, len(audio) if isinstance(audio, Sized) else None)
    raise TypeError(f"`audio` is a {type(audio).__name__}; expected {KINDS}, or several of them.")


@contextmanager
def open_item(item: Any, sampling_rate: int | None, number: int) -> Iterator[Recording]:
    """Opens one item, whatever it is.

    Args:
        item: See `encode`.
        sampling_rate: Rate in Hz of arrays that carry none.
        number: Its place among the items; it stands in messages, with the path if there is one.

    Raises:
        BadClipError: If there is no audio in it; `reason` and message say why.
    """
    if isinstance(item, Mapping) and not item.keys() & {"array", "bytes", "path"}:
        item = _audio_of_row(item, number)
    name = _name(item, number)
    if isinstance(item, (str, os.PathLike)):
        item = {"bytes": None, "path": os.fspath(item)}
    elif isinstance(item, (bytes, bytearray)):
        item = {"bytes": item, "path": None}
    if isinstance(item, Mapping) and "array" not in item:
        with open_recording(item, name) as recording:
            yield recording
    elif hasattr(item, "get_all_samples") and hasattr(item, "get_samples_played_in_range"):
        recording = decoder_recording(item, name)
        _agreed_rate(recording.rate, sampling_rate, name)
        yield recording
    elif item is None:
        raise BadClipError("empty", f"{name} is None; leave it out.")
    else:
        samples, rate = _samples_and_rate(item, name)
        yield _array_recording(samples, _agreed_rate(rate, sampling_rate, name), number, name)


def _rows(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterator[Any]:
    """A data set's audio, undecoded; its rows as they are if they hold arrays or nobody knows their columns."""
    features = dataset.features
    if features is None or "array" in features:
        return iter(dataset)
    return (row["audio"] for row in audio_rows(dataset))


def _is_waveform(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Number) for value in values)


def _audio_of_row(row: Mapping[str, Any], number: int) -> Any:
    """The one value of a data set's row that is audio; that of the column `audio` if there is such a column."""
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
    """An item's samples, and the rate it carries."""
    if isinstance(item, Mapping):
        return item["array"], item.get("sampling_rate")
    if not hasattr(item, "get_all_samples"):
        return item, None
    try:
        decoded = item.get_all_samples()
    except DECODE_ERRORS as error:
        raise BadClipError("unreadable", f"{name}: it does not decode: {summary(error)}") from error
    return decoded.data, decoded.sample_rate


def _agreed_rate(own: Any, given: int | None, name: str) -> int:
    """The rate that an array carries or that came with the call."""
    rate = given if own is None else own
    if rate is None:
        raise BadClipError("unreadable", f"{name} came without a sampling rate: pass `sampling_rate`, in Hz.")
    if own is not None and given is not None and own != given:
        raise BadClipError("unreadable", f"{name} says it is at {own} Hz, `sampling_rate` says {given} Hz: drop one.")
    if not isinstance(rate, Real) or not float(rate) > 0 or not float(rate).is_integer():
        raise BadClipError(
            "unreadable", f"{name} has the sampling rate {rate!r}; expected a positive whole number of Hz."
        )
    return int(float(rate))


def _array_recording(samples: Any, rate: int, number: int, name: str) -> Recording:
    """Checks what can be checked without looking at all samples."""
    try:
        waveform = samples.detach() if isinstance(samples, torch.Tensor) else waveform_from_array(samples, number)
        if waveform.dtype.is_complex:
            raise ValueError(f"Clip {number} is complex; expected real samples.")
        to_float(waveform.new_empty(0), number)  # so that a type without a full scale is found out here
    except ValueError as error:
        raise BadClipError("unreadable", str(error)) from error
    if waveform.ndim not in (1, 2) or (waveform.ndim == 2 and waveform.shape[0] > MAX_CHANNELS):
        raise BadClipError(
            "unreadable",
            f"{name} has the shape {tuple(waveform.shape)}; expected (samples,) or (channels, samples) with at most "
            f"{MAX_CHANNELS} channels: transpose it, or pass several clips as a list.",
        )
    if waveform.numel() == 0:
        raise BadClipError("empty", f"{name} has no samples; leave it out.")
    return Recording(name, rate, partial(_read_array, waveform, number))


def _read_array(waveform: torch.Tensor, number: int) -> Iterator[np.ndarray]:
    """(samples,) or (channels, samples) of any type -> mono blocks, so that no copy of the whole is made."""
    size = BLOCK_SAMPLES // (len(waveform) if waveform.ndim == 2 else 1)
    for start in range(0, waveform.shape[-1], size):
        block = to_float(waveform[..., start : start + size], number)
        yield (block.mean(dim=0) if block.ndim == 2 else block).cpu().numpy()


__all__ = ["Items", "items_of", "open_item"]
