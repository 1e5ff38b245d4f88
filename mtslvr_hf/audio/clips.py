"""From an encoded audio file to a clip: open, choose a crop, decode, mix down, resample, check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from .errors import DECODE_ERRORS, READ_ERRORS, BadClip, summary
from .files import (
    MP3_SLACK_FRAMES,
    UNKNOWN_FRAMES,
    describe,
    missing_bytes,
    mix_down,
    needs_torchcodec,
    open_audio,
    torchcodec_decoder,
)
from .hashing import hash_integers

SILENCE_DBFS = -90.0
MAX_UNKNOWN_SECONDS = 600  # of a stream of unknown length
RESAMPLER_MARGIN_SECONDS = 0.02  # read around a crop, so that its edges are resampled as the whole would be


class _Crop(NamedTuple):
    """Frames [begin, end) of a file; the first `lead` of them only serve the resampler."""

    begin: int
    end: int
    lead: int


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
        Float32 array (samples,), samples = round(clip_seconds * sampling_rate); not normalised.

    Raises:
        BadClip: If the file gives no clip: `reason` and message say why. What a truncated OGG file still holds
            cannot be told from a shorter one and is taken.
    """
    name = describe(audio)
    try:
        with open_audio(audio) as file:
            waveform, rate, crop = _decode(file, clip_seconds, sampling_rate, crop_seed, name)
    except READ_ERRORS as error:
        raise BadClip("unreadable", f"{name}: {type(error).__name__}: {summary(error)}") from error
    mono = mix_down(waveform)
    level = _level_dbfs(mono)
    if not math.isfinite(level) and level != -math.inf:
        raise BadClip("non_finite", f"{name}: contains infinite values or NaN")
    if level < SILENCE_DBFS:
        raise BadClip(
            "silent", f"{name}: {level:.0f} dBFS between {crop.begin / rate:.1f} and {crop.end / rate:.1f} s"
        )
    return _fit(mono, rate, crop.lead, clip_seconds, sampling_rate, name)


def _decode(
    file: BinaryIO, clip_seconds: float | None, sampling_rate: int, seed: int | None, name: str
) -> tuple[np.ndarray, int, _Crop]:
    """Reads (frames, channels) around the crop; also gives the file's rate and what was read."""
    magic = file.read(16)
    file.seek(0)
    if not magic:
        raise BadClip("empty", f"{name}: no data")
    if needs_torchcodec(magic):
        return _decode_with_torchcodec(file, clip_seconds, sampling_rate, seed, name)
    try:
        sound = soundfile.SoundFile(file)
    except DECODE_ERRORS as error:
        raise BadClip("unreadable", f"{name}: {summary(error)}") from error
    with sound:
        return _decode_with_soundfile(sound, clip_seconds, sampling_rate, seed, name)


def _decode_with_soundfile(
    sound: soundfile.SoundFile, clip_seconds: float | None, sampling_rate: int, seed: int | None, name: str
) -> tuple[np.ndarray, int, _Crop]:
    rate, frames = sound.samplerate, sound.frames
    if frames == 0:
        raise BadClip("empty", f"{name}: no samples")
    missing = missing_bytes(sound.extra_info)
    if missing:
        raise BadClip("truncated", f"{name}: {missing} bytes less than its header says")
    if frames > UNKNOWN_FRAMES:
        waveform = _read_unknown_length(sound, name)
        crop = _choose_crop(len(waveform), rate, clip_seconds, sampling_rate, seed)
        return waveform[crop.begin : crop.end], rate, crop
    crop = _choose_crop(frames, rate, clip_seconds, sampling_rate, seed)
    try:
        waveform = _read(sound, crop)
    except DECODE_ERRORS as error:
        raise BadClip("truncated", f"{name}: breaks off: {summary(error)}") from error
    slack = MP3_SLACK_FRAMES if sound.format == "MP3" else 0
    if len(waveform) < max(1, crop.end - crop.begin - slack):
        ended = (crop.begin + len(waveform)) / rate
        raise BadClip("truncated", f"{name}: ends after {ended:.2f} of {frames / rate:.2f} s")
    return waveform, rate, crop


def _read(sound: soundfile.SoundFile, crop: _Crop) -> np.ndarray:
    """Reads a crop, (frames, channels), by the one seek after opening that is right in every format.

    libsndfile 1.2 goes wrong in OGG Vorbis when it seeks after it has decoded.
    """
    if crop.begin == 0:
        return sound.read(crop.end, dtype="float32", always_2d=True)
    if not sound.seekable():
        return sound.read(crop.end, dtype="float32", always_2d=True)[crop.begin :]
    sound.seek(crop.begin)
    return sound.read(crop.end - crop.begin, dtype="float32", always_2d=True)


def _read_unknown_length(sound: soundfile.SoundFile, name: str) -> np.ndarray:
    """Reads blocks until nothing follows, (frames, channels); libsndfile does not hand out the last, partial one."""
    blocks = []
    while len(blocks) * 4096 < MAX_UNKNOWN_SECONDS * sound.samplerate:
        try:
            blocks.append(sound.read(4096, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError:
            break
        if len(blocks[-1]) < 4096:
            break
    if not blocks:
        raise BadClip("empty", f"{name}: no samples")
    return np.concatenate(blocks)


def _decode_with_torchcodec(
    file: BinaryIO, clip_seconds: float | None, sampling_rate: int, seed: int | None, name: str
) -> tuple[np.ndarray, int, _Crop]:
    decoder = torchcodec_decoder(file.read(), name)
    try:
        rate, seconds = decoder.metadata.sample_rate or 0, decoder.metadata.duration_seconds or 0.0
        crop = _choose_crop(int(seconds * rate), rate, clip_seconds, sampling_rate, seed)
        waveform = decoder.get_samples_played_in_range(crop.begin / rate, crop.end / rate).data.T.numpy()
    except DECODE_ERRORS as error:
        raise BadClip("unreadable", f"{name}: {summary(error)}") from error
    if len(waveform) < max(1, crop.end - crop.begin - rate // 10):  # containers round their duration
        raise BadClip("truncated", f"{name}: ends after {(crop.begin + len(waveform)) / rate:.2f} of {seconds:.2f} s")
    return waveform, rate, crop  # (frames, channels)


def _choose_crop(frames: int, rate: int, clip_seconds: float | None, sampling_rate: int, seed: int | None) -> _Crop:
    """Chooses the frames to read, a multiple of `grid` before which both rates have whole samples."""
    if clip_seconds is None:
        return _Crop(0, frames, 0)
    wanted = math.ceil(clip_seconds * rate) + (rate != sampling_rate)
    if frames <= wanted:
        return _Crop(0, frames, 0)
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
        centred = mono - mono.mean()
        deviation = math.sqrt(np.dot(centred, centred) / len(mono))  # a product: 10 times faster than `std`
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
            raise BadClip("unreadable", f"{name}: {rate} Hz: {summary(error)}") from error
        mono = mono[round(lead * sampling_rate / rate) :]
    if len(mono) == 0:
        raise BadClip("empty", f"{name}: less than one sample at {sampling_rate} Hz")
    samples = len(mono) if clip_seconds is None else round(clip_seconds * sampling_rate)
    return mono[:samples] if len(mono) >= samples else np.resize(mono, samples)  # np.resize repeats


__all__ = ["SILENCE_DBFS", "decode_clip"]
