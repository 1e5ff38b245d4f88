"""From an encoded audio file to a clip: open, choose a crop, decode, mix down, resample, check."""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
import os
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import aiohttp
import fsspec
import numpy as np
import soundfile
import soxr
from huggingface_hub.errors import HfHubHTTPError

REASONS = ("unreadable", "missing_codec", "truncated", "empty", "non_finite", "silent", "unreadable_shard")
SILENCE_DBFS = -90.0
UNKNOWN_FRAMES = 2**62  # libsndfile gives about 2**63 for a FLAC stream whose header does not tell its length
MAX_UNKNOWN_SECONDS = 600  # of a stream of unknown length
RESAMPLER_MARGIN_SECONDS = 0.02  # read around a crop, so that its edges are resampled as the whole would be
MP3_SLACK_FRAMES = 2 * 1152  # encoders announce up to two MP3 frames more than decoders return
KEY_BYTES = 4096  # of a file's head and tail
MAX_ERROR_LENGTH = 200
# What reading a file can raise, over a network too. Neither the HTTPError of the Hub's client nor the ClientError of
# fsspec's (aiohttp) is an OSError, nor is a timeout of fsspec before Python 3.11.
READ_ERRORS = (*HfHubHTTPError.__bases__, aiohttp.ClientError, asyncio.TimeoutError, EOFError)
# libsndfile's errors are RuntimeErrors; bad headers also give ValueError (NumPy, soxr), TypeError (no format) and,
# with absurd sizes, MemoryError, OverflowError and ZeroDivisionError.
DECODE_ERRORS = (*READ_ERRORS, RuntimeError, ValueError, TypeError, MemoryError, ArithmeticError)
# Chunks that hold the audio (WAV, AIFF, AU, CAF, W64, RF64) in libsndfile's log: "data : 384000 (should be 3796)".
SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
STREAMED_SIZES = (2**31 - 1, 2**31, 2**32 - 1)  # what programs write that do not know the length yet


class BadClip(ValueError):
    """A row that gives no clip.

    Args:
        reason: One of `REASONS`.
        message: What is wrong with it, and where it came from.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}: {self.args[1]}"


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
        raise BadClip("unreadable", f"{name}: {type(error).__name__}: {_summary(error)}") from error
    mono = _mix_down(waveform)
    level = _level_dbfs(mono)
    if not math.isfinite(level) and level != -math.inf:
        raise BadClip("non_finite", f"{name}: contains infinite values or NaN")
    if level < SILENCE_DBFS:
        raise BadClip(
            "silent", f"{name}: {level:.0f} dBFS between {crop.begin / rate:.1f} and {crop.end / rate:.1f} s"
        )
    return _fit(mono, rate, crop.lead, clip_seconds, sampling_rate, name)


def describe(audio: Mapping[str, Any]) -> str:
    """Names a row in messages: its path, or its size."""
    return audio.get("path") or f"{len(audio.get('bytes') or b'')} bytes without a name"


def open_audio(audio: Mapping[str, Any]) -> BinaryIO:
    """Opens an encoded file for reading.

    Raises:
        BadClip: If there are neither bytes nor a path.
        OSError: If the path cannot be opened. (A URL may raise the other `READ_ERRORS`.)
    """
    if audio.get("bytes"):
        return io.BytesIO(audio["bytes"])  # shares the memory
    if audio.get("bytes") is not None or not audio.get("path"):
        raise BadClip("empty", f"{describe(audio)}: no data")
    return open(audio["path"], "rb")


def fetch(audio: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reads a row that is only a URL, so that it is transferred once; others come back as they are.

    Raises:
        BadClip: If it cannot be read.
    """
    path = audio.get("path") or ""
    if audio.get("bytes") is not None or "://" not in path:
        return audio
    try:
        with fsspec.open(path, "rb") as file:
            return {"bytes": file.read(), "path": path}
    except (*READ_ERRORS, ValueError, ImportError) as error:  # fsspec: unknown protocols, missing packages
        raise BadClip("unreadable", f"{path}: {type(error).__name__}: {_summary(error)}") from error


def row_key(audio: Mapping[str, Any]) -> int:
    """Identifies a row by its encoded file: a 64-bit checksum of length, head and tail (4 KiB each).

    Raises:
        BadClip: If the file cannot be read.
    """
    try:
        with open_audio(audio) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(KEY_BYTES)
            file.seek(max(0, length - KEY_BYTES))
            tail = file.read(KEY_BYTES)
    except READ_ERRORS as error:
        raise BadClip("unreadable", f"{describe(audio)}: {type(error).__name__}: {_summary(error)}") from error
    return _hash(b"%d," % length + head + tail)


def hash_integers(*values: int) -> int:
    """Mixes integers into 64 bits, the same on every machine."""
    return _hash(b",".join(b"%d" % value for value in values))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _decode(
    file: BinaryIO, clip_seconds: float | None, sampling_rate: int, seed: int | None, name: str
) -> tuple[np.ndarray, int, _Crop]:
    """Reads (frames, channels) around the crop; also gives the file's rate and what was read."""
    magic = file.read(16)
    file.seek(0)
    if not magic:
        raise BadClip("empty", f"{name}: no data")
    if _needs_torchcodec(magic):
        return _decode_with_torchcodec(file, clip_seconds, sampling_rate, seed, name)
    try:
        sound = soundfile.SoundFile(file)
    except DECODE_ERRORS as error:
        raise BadClip("unreadable", f"{name}: {_summary(error)}") from error
    with sound:
        return _decode_with_soundfile(sound, clip_seconds, sampling_rate, seed, name)


def _decode_with_soundfile(
    sound: soundfile.SoundFile, clip_seconds: float | None, sampling_rate: int, seed: int | None, name: str
) -> tuple[np.ndarray, int, _Crop]:
    rate, frames = sound.samplerate, sound.frames
    if frames == 0:
        raise BadClip("empty", f"{name}: no samples")
    missing = _missing_bytes(sound.extra_info)
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
        raise BadClip("truncated", f"{name}: breaks off: {_summary(error)}") from error
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
    decoder = _torchcodec_decoder(file.read(), name)
    try:
        rate, seconds = decoder.metadata.sample_rate or 0, decoder.metadata.duration_seconds or 0.0
        crop = _choose_crop(int(seconds * rate), rate, clip_seconds, sampling_rate, seed)
        waveform = decoder.get_samples_played_in_range(crop.begin / rate, crop.end / rate).data.T.numpy()
    except DECODE_ERRORS as error:
        raise BadClip("unreadable", f"{name}: {_summary(error)}") from error
    if len(waveform) < max(1, crop.end - crop.begin - rate // 10):  # containers round their duration
        raise BadClip("truncated", f"{name}: ends after {(crop.begin + len(waveform)) / rate:.2f} of {seconds:.2f} s")
    return waveform, rate, crop  # (frames, channels)


def _torchcodec_decoder(data: bytes, name: str) -> Any:
    try:
        from torchcodec.decoders import AudioDecoder

        return AudioDecoder(data)
    except (ImportError, *DECODE_ERRORS) as error:
        # Without FFmpeg's libraries torchcodec may be imported, but not used.
        if not isinstance(error, (ImportError, OSError)) and "load libtorchcodec" not in str(error):
            raise BadClip("unreadable", f"{name}: {_summary(error)}") from error
        raise BadClip(
            "missing_codec",
            f"{name}: this format needs torchcodec (pip install torchcodec) and FFmpeg's libraries "
            f"(e.g. apt install ffmpeg): {_summary(error)}",
        ) from error


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


def _mix_down(waveform: np.ndarray) -> np.ndarray:
    """Averages channels, (frames, channels) -> (frames,); as a product, which is 10 times faster than `mean(1)`."""
    channels = waveform.shape[1]
    if channels == 1:
        return waveform[:, 0]
    with np.errstate(all="ignore"):  # non-finite samples are found later
        return waveform @ np.full(channels, 1 / channels, dtype=np.float32)


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
            raise BadClip("unreadable", f"{name}: {rate} Hz: {_summary(error)}") from error
        mono = mono[round(lead * sampling_rate / rate) :]
    if len(mono) == 0:
        raise BadClip("empty", f"{name}: less than one sample at {sampling_rate} Hz")
    samples = len(mono) if clip_seconds is None else round(clip_seconds * sampling_rate)
    return mono[:samples] if len(mono) >= samples else np.resize(mono, samples)  # np.resize repeats


def _needs_torchcodec(magic: bytes) -> bool:
    """Whether a file begins like MP4/M4A, Matroska/WebM, ASF/WMA or ADTS AAC."""
    adts = magic[0] == 0xFF and len(magic) > 1 and magic[1] & 0xF6 == 0xF0
    return (
        magic[4:8] == b"ftyp" or magic.startswith((b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")) or adts
    )


def _missing_bytes(log: str) -> int:
    """Bytes of audio that a header announces and the file does not have, from libsndfile's log."""
    for announced, present in SHORT_CHUNK.findall(log):
        if int(announced) > int(present) and int(announced) not in STREAMED_SIZES:
            return int(announced) - int(present)
    return 0


def _summary(error: BaseException) -> str:
    """An error's text on one line; libsndfile's without the file object's address."""
    text = " ".join(str(getattr(error, "error_string", error)).split())
    return text[:MAX_ERROR_LENGTH] or type(error).__name__


__all__ = ["REASONS", "BadClip", "decode_clip", "fetch", "hash_integers", "row_key"]
