"""Clips of encoded audio files: choice of a crop, decoding, resampling, check for silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import soxr

from .errors import BadClipError, decode_errors, summary
from .hashing import hash_integers
from .recording import MAX_SECONDS, OnTruncated, Recording, open_recording

SILENCE_DBFS = -90.0
RESAMPLER_MARGIN_SECONDS = 0.02  # read around a crop, so that its edges are resampled as in the whole file


class _Crop(NamedTuple):
    """Frames [begin, end) of a file."""

    begin: int = 0
    end: int | None = None  # None: to the end of the file
    lead: int = 0  # first frames, which are only for the resampler


def decode_clip(
    audio: Mapping[str, Any],
    clip_seconds: float | None = None,
    sampling_rate: int = 16_000,
    crop_seed: int | None = None,
    on_truncated: OnTruncated = "error",
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Mono clip of a given length from an encoded audio file.

    soundfile and soxr decode the formats of libsndfile (WAV, FLAC, MP3, OGG, Opus, AIFF, ...) and seek to the crop.
    M4A, MP4, WebM, AAC and WMA need torchcodec. Only the crop is checked for non-finite values and for silence
    (deviation from the mean under -90 dBFS). A crop of joined FLAC or Ogg files comes from the first one.

    Args:
        audio: `{"bytes", "path"}` as in an undecoded `datasets.Audio` column. Without bytes, the path is a local
            file or a URL.
        clip_seconds: Length of the clip; longer files are cropped, shorter ones repeated. None takes the whole file.
        sampling_rate: Sampling rate of the clip in Hz.
        crop_seed: Seed of the crop's position; None takes the middle.
        on_truncated: "error", or "keep" to take the samples that a truncated file has.
        max_seconds: Longest file that is decoded whole (without `clip_seconds`) into memory, in seconds.

    Returns:
        Float32 array (samples,), samples = round(clip_seconds * sampling_rate); not normalized.

    Raises:
        BadClipError: If the file gives no clip; it has a `reason`. A truncated OGG file is read as a shorter one.
    """
    with open_recording(audio, None, on_truncated, whole=clip_seconds is None) as recording:
        if clip_seconds is None:
            clip = recording.samples(sampling_rate, max_seconds)
            _check_level(clip, recording, 0, sampling_rate)
            return clip
        crop = _choose_crop(recording, clip_seconds, sampling_rate, crop_seed)
        blocks = list(recording.read(crop.begin, crop.end))
    mono = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    _check_level(mono, recording, crop.begin, recording.rate)
    return _fit(mono, recording.rate, crop.lead, clip_seconds, sampling_rate, recording.name)


def _check_level(mono: np.ndarray, recording: Recording, begin: int, rate: int) -> None:
    """Raises BadClipError if samples from a frame on are not finite, or silent."""
    level = level_dbfs(mono)
    if not math.isfinite(level) and level != -math.inf:
        raise BadClipError("non_finite", f"{recording.name}: contains infinite values or NaN.")
    if level < SILENCE_DBFS:
        first, last = begin / rate, (begin + len(mono)) / rate
        raise BadClipError("silent", f"{recording.name}: {level:.0f} dBFS between {first:.1f} and {last:.1f} s.")


def _choose_crop(recording: Recording, clip_seconds: float, sampling_rate: int, seed: int | None) -> _Crop:
    """Frames to read; they start at a multiple of `grid`, where both rates have a sample."""
    rate, frames = recording.rate, recording.frames
    if frames is None:
        frames = sum(map(len, recording.read()))  # decodes twice, which saves memory
    wanted = math.ceil(clip_seconds * rate) + (rate != sampling_rate)
    if frames <= wanted:
        return _Crop()
    grid = rate // math.gcd(rate, sampling_rate)
    slack = frames - wanted
    start = slack // 2 if seed is None else hash_integers(seed) * (slack + 1) >> 64
    start -= start % grid
    margin = 0 if rate == sampling_rate else math.ceil(RESAMPLER_MARGIN_SECONDS * rate / grid) * grid
    begin = max(0, start - margin)
    return _Crop(begin, min(frames, start + wanted + margin), start - begin)


def level_dbfs(mono: np.ndarray) -> float:
    """Level of the deviation from the mean in dBFS; NaN if samples are not finite or too large."""
    with np.errstate(all="ignore"):
        centered = mono - mono.mean()
        deviation = math.sqrt(np.dot(centered, centered) / len(mono))  # 10 times faster than `std`
    if deviation == 0:
        return -math.inf
    return 20 * math.log10(deviation) if math.isfinite(deviation) else math.nan


def _fit(mono: np.ndarray, rate: int, lead: int, clip_seconds: float, sampling_rate: int, name: str) -> np.ndarray:
    """Clip of the right rate and length: resampled, without margins, repeated if too short."""
    if rate != sampling_rate:
        try:
            mono = soxr.resample(mono, rate, sampling_rate, quality="HQ")
        except decode_errors() as error:
            raise BadClipError("unreadable", f"{name}: {rate} Hz: {summary(error)}") from error
        mono = mono[round(lead * sampling_rate / rate) :]
    if len(mono) == 0:
        raise BadClipError("empty", f"{name}: less than one sample at {sampling_rate} Hz.")
    samples = round(clip_seconds * sampling_rate)
    return mono[:samples] if len(mono) >= samples else np.resize(mono, samples)  # np.resize repeats


__all__ = ["SILENCE_DBFS", "decode_clip", "level_dbfs"]
