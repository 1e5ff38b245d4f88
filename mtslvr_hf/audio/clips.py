"""From an encoded audio file to a clip: choose a crop, decode it, resample, refuse silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import soxr

from .errors import DECODE_ERRORS, BadClipError, summary
from .hashing import hash_integers
from .recording import Recording, open_recording

SILENCE_DBFS = -90.0
RESAMPLER_MARGIN_SECONDS = 0.02  # read around a crop, so that its edges are resampled as the whole would be


class _Crop(NamedTuple):
    """Frames [begin, end) of a file, to its end if that is None; the first `lead` only serve the resampler."""

    begin: int = 0
    end: int | None = None
    lead: int = 0


def decode_clip(
    audio: Mapping[str, Any],
    clip_seconds: float | None = None,
    sampling_rate: int = 16_000,
    crop_seed: int | None = None,
) -> np.ndarray:
    """Decodes an encoded file to a mono clip of a given length.

    What libsndfile reads (WAV, FLAC, MP3, OGG, Opus, AIFF, ...) is decoded with soundfile and soxr; a crop is sought
    before decoding. M4A, MP4, WebM, AAC and WMA need torchcodec. Non-finite values and silence (deviation under -90
    dBFS, a constant offset aside) are those of the crop that was read; the rest of the file is not looked at.

    Args:
        audio: `{"bytes", "path"}` as in an undecoded `datasets.Audio` column. Without bytes, the path is a local
            file or a URL.
        clip_seconds: Length of the clip; a longer file is cropped, a shorter one repeated. `None` takes all of it.
        sampling_rate: Sampling rate of the clip in Hz.
        crop_seed: Chooses where the crop lies; `None` takes the middle.

    Returns:
        Float32 array (samples,), samples = round(clip_seconds * sampling_rate); not normalized.

    Raises:
        BadClipError: If the file gives no clip: `reason` and message say why. What a truncated OGG file still holds
            cannot be told from a shorter one and is taken.
    """
    with open_recording(audio) as recording:
        crop = _choose_crop(recording, clip_seconds, sampling_rate, crop_seed)
        blocks = list(recording.read(crop.begin, crop.end))
    mono = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    level = _level_dbfs(mono)
    if not math.isfinite(level) and level != -math.inf:
        raise BadClipError("non_finite", f"{recording.name}: contains infinite values or NaN.")
    if level < SILENCE_DBFS:
        begin, end = crop.begin / recording.rate, (crop.begin + len(mono)) / recording.rate
        raise BadClipError("silent", f"{recording.name}: {level:.0f} dBFS between {begin:.1f} and {end:.1f} s.")
    return _fit(mono, recording.rate, crop.lead, clip_seconds, sampling_rate, recording.name)


def _choose_crop(recording: Recording, clip_seconds: float | None, sampling_rate: int, seed: int | None) -> _Crop:
    """Chooses the frames to read, a multiple of `grid` before which both rates have whole samples."""
    if clip_seconds is None:
        return _Crop()
    rate, frames = recording.rate, recording.frames
    if frames is None:
        frames = sum(map(len, recording.read()))  # decoded twice, so that the memory does not grow with the file
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


def _level_dbfs(mono: np.ndarray) -> float:
    """Level of the deviation from the mean; NaN or infinite if a sample is, or if they are absurdly large."""
    with np.errstate(all="ignore"):
        centered = mono - mono.mean()
        deviation = math.sqrt(np.dot(centered, centered) / len(mono))  # a product: 10 times faster than `std`
    if deviation == 0:
        return -math.inf
    return 20 * math.log10(deviation) if math.isfinite(deviation) else math.nan


def _fit(
    mono: np.ndarray, rate: int, lead: int, clip_seconds: float | None, sampling_rate: int, name: str
) -> np.ndarray:
    """Resamples, cuts the margins off and repeats what is too short."""
    if rate != sampling_rate:
        try:
            mono = soxr.resample(mono, rate, sampling_rate, quality="HQ")
        except DECODE_ERRORS as error:
            raise BadClipError("unreadable", f"{name}: {rate} Hz: {summary(error)}") from error
        mono = mono[round(lead * sampling_rate / rate) :]
    if len(mono) == 0:
        raise BadClipError("empty", f"{name}: less than one sample at {sampling_rate} Hz.")
    samples = len(mono) if clip_seconds is None else round(clip_seconds * sampling_rate)
    return mono[:samples] if len(mono) >= samples else np.resize(mono, samples)  # np.resize repeats


__all__ = ["SILENCE_DBFS", "decode_clip"]
