"""Recordings: encoded audio of any length, decoded in blocks or in part, in bounded memory."""

from __future__ import annotations

import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from .errors import DECODE_ERRORS, BadClipError, summary
from .files import (
    copy_url,
    describe,
    is_url,
    missing_bytes,
    mix_down,
    needs_torchcodec,
    open_audio,
    torchcodec_decoder,
)

BLOCK_SAMPLES = 2**18  # of all channels together: 1 MiB of float32
MP3_SLACK_FRAMES = 2 * 1152  # encoders announce up to two MP3 frames more than decoders return
UNKNOWN_FRAMES = 2**62  # libsndfile returns about 2**63 for a FLAC stream without a length in its header
UNKNOWN_LENGTH_FRAMES = 4096  # libsndfile does not return the last, partial block of such a stream
RANGE_SECONDS = 60  # decoded at once by torchcodec
FORMATS = "WAV, FLAC, MP3, OGG, Opus, AIFF; with torchcodec M4A, WebM, AAC, WMA"


@dataclass(frozen=True)
class Recording:
    """Audio that can be read several times.

    Attributes:
        name: Name in messages.
        rate: Sampling rate in Hz.
        read: Yields mono float32 blocks (frames,) at `rate`, together at least one frame. A file's `read(begin, end)`
            seeks and decodes these frames in one block.
        frames: Length in frames, if the header states it.
    """

    name: str
    rate: int
    read: Callable[..., Iterator[np.ndarray]]
    frames: int | None = None

    def blocks(self, sampling_rate: int) -> Iterator[np.ndarray]:
        """Mono float32 blocks (samples,) at a rate in Hz, finite, together at least one sample.

        Resampled as in pre-training (soxr HQ), without artifacts at the blocks' edges.

        Raises:
            BadClipError: If the recording cannot be read to its end, is empty, or a sample is NaN or infinite.
        """
        resampler = None
        if self.rate != sampling_rate:
            try:
                resampler = soxr.ResampleStream(self.rate, sampling_rate, 1, dtype="float32", quality="HQ")
            except DECODE_ERRORS as error:
                message = f"{self.name}: {self.rate} Hz cannot be resampled to {sampling_rate} Hz: {error}"
                raise BadClipError("unreadable", message) from error
        given, level = 0, None  # mean of the first block
        for block in itertools.chain(self._checked(self.read()), [np.zeros(0, dtype=np.float32)]):
            level = block.mean(dtype=np.float64) if level is None else level
            if resampler is not None:
                block = resampler.resample_chunk(block, last=len(block) == 0)
            given += len(block)
            if len(block):
                yield block
        if given == 0:  # shorter than a sample of the new rate
            yield np.full(1, level, dtype=np.float32)

    def _checked(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the blocks that hold samples; raises at the first sample that is not finite."""
        position = 0
        for block in blocks:
            # A float64 sum is finite if and only if all its float32 terms are.
            if not math.isfinite(float(np.sum(block, dtype=np.float64))):
                bad = position + int(np.argmin(np.isfinite(block)))
                raise BadClipError(
                    "non_finite",
                    f"{self.name}: the sample at {bad / self.rate:.3f} s is NaN or infinite; replace such samples, "
                    "or leave it out.",
                )
            position += len(block)
            if len(block):
                yield block


@contextmanager
def open_recording(audio: Mapping[str, Any], name: str | None = None) -> Iterator[Recording]:
    """Context of an opened encoded file; a URL is copied to a temporary file first.

    Args:
        audio: `{"bytes", "path"}` as in an undecoded `datasets.Audio` column. Without bytes, the path is a local file
            or a URL that fsspec opens.
        name: Name in messages; default: the path.

    Raises:
        BadClipError: If the file is missing, a folder, not audio, empty or truncated, or the URL cannot be read.
    """
    name = name or describe(audio)
    if is_url(audio):
        with tempfile.NamedTemporaryFile(prefix="mtslvr-") as copy:
            copy_url(audio["path"], copy, name)
            with open_recording({"path": copy.name}, name) as recording:
                yield recording
        return
    file, magic = _open(audio, name)
    if needs_torchcodec(magic):
        file.close()
        source = bytes(audio["bytes"]) if audio.get("bytes") else str(audio["path"])
        raw_aac = magic[0] == 0xFF  # has no container; its duration is estimated from the bit rate
        yield decoder_recording(torchcodec_decoder(source, name), name, exact=not raw_aac)
        return
    with file, _open_sound(file, name) as sound:
        frames = sound.frames if sound.frames <= UNKNOWN_FRAMES else None
        yield Recording(name, sound.samplerate, partial(_read_sound, [sound], audio, name), frames)


def decoder_recording(decoder: Any, name: str, exact: bool = False) -> Recording:
    """Recording of torchcodec's `AudioDecoder`, decoded in ranges of a minute.

    WebM's times are whole milliseconds: at a range's edge, up to a millisecond may be repeated.

    Args:
        decoder: Has `metadata` and `get_samples_played_in_range`.
        name: Name in messages.
        exact: True if the duration in the metadata is exact, so that a truncated file is detected.

    Raises:
        BadClipError: If there is no audio in it.
    """
    rate = int(decoder.metadata.sample_rate or 0)
    if not rate:
        raise BadClipError("unreadable", f"{name}: torchcodec finds no audio in it; leave it out.")
    frames = int((decoder.metadata.duration_seconds or 0) * rate) if exact else 0
    return Recording(name, rate, partial(_read_ranges, decoder, name, rate, frames), frames or None)


def read_waveform(audio: Mapping[str, Any], sampling_rate: int) -> np.ndarray:
    """Whole waveform of an undecoded row `{"bytes", "path"}`: mono float32 (samples,), not normalized, maybe silent.

    Raises:
        BadClipError: If it is missing, no audio, truncated, empty or not finite.
    """
    with open_recording(audio) as recording:
        return np.concatenate(list(recording.blocks(sampling_rate)))


def _open(audio: Mapping[str, Any], name: str) -> tuple[BinaryIO, bytes]:
    """Opened file and its first bytes."""
    try:
        file = open_audio(audio, name)
        magic = file.read(16)
        file.seek(0)
    except IsADirectoryError as error:
        raise BadClipError("unreadable", f"{name} is a folder; expected a file: pass the files in it.") from error
    except FileNotFoundError as error:
        raise BadClipError(
            "unreadable", f"{name}: there is no such file; relative paths start at {os.getcwd()}."
        ) from error
    except BadClipError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise BadClipError("unreadable", f"{name}: {type(error).__name__}: {summary(error)}") from error
    if not magic:
        file.close()
        raise BadClipError("empty", f"{name}: the file is empty; leave it out.")
    return file, magic


def _open_sound(file: BinaryIO, name: str) -> soundfile.SoundFile:
    """File opened by libsndfile, through a descriptor: libsndfile guesses the format of a path by its suffix."""
    try:
        sound = soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False)
    except DECODE_ERRORS as error:
        raise BadClipError(
            "unreadable", f"{name}: no audio that could be read ({summary(error)}); expected {FORMATS}."
        ) from error
    missing = missing_bytes(sound.extra_info)
    if missing:
        sound.close()
        raise BadClipError("truncated", f"{name}: {missing} bytes less than in its header; fetch or write it again.")
    return sound


def _read_sound(
    unread: list[soundfile.SoundFile], audio: Mapping[str, Any], name: str, begin: int = 0, end: int | None = None
) -> Iterator[np.ndarray]:
    """Blocks of a file that libsndfile opened. Later reads open it again: version 1.2 seeks wrongly in OGG Vorbis."""
    if not unread:
        with open_recording(audio, name) as recording:
            yield from recording.read(begin, end)
        return
    sound = unread.pop()
    known = sound.frames <= UNKNOWN_FRAMES
    size = max(UNKNOWN_LENGTH_FRAMES, BLOCK_SAMPLES // sound.channels) if known else UNKNOWN_LENGTH_FRAMES
    blocks = _decode_sound(sound, begin, end or sound.frames, end - begin if end else size)
    slack = MP3_SLACK_FRAMES if sound.format == "MP3" else 0
    yield from _mixed(blocks, name, sound.samplerate, begin, end or (sound.frames if known else 0), slack)


def _decode_sound(sound: soundfile.SoundFile, begin: int, end: int, size: int) -> Iterator[np.ndarray]:
    """Decoded blocks (frames, channels) between two frames."""
    if begin and sound.seekable():
        sound.seek(begin)
    elif begin:
        sound.read(begin, dtype="float32")
    for start in range(begin, end, size):
        block = sound.read(min(size, end - start), dtype="float32", always_2d=True)
        if len(block) == 0:
            return
        yield block


def _read_ranges(
    decoder: Any, name: str, rate: int, frames: int, begin: int = 0, end: int | None = None
) -> Iterator[np.ndarray]:
    """Blocks decoded by torchcodec; containers round their duration by less than 0.1 s."""
    yield from _mixed(_decode_ranges(decoder, name, rate, begin, end), name, rate, begin, end or frames, rate // 10)


def _decode_ranges(decoder: Any, name: str, rate: int, begin: int, end: int | None) -> Iterator[np.ndarray]:
    """Decoded ranges (frames, channels), until one is not full."""
    size = end - begin if end else RANGE_SECONDS * rate
    for start in itertools.count(begin, size):
        try:
            samples = decoder.get_samples_played_in_range(start / rate, (start + size) / rate).data
        except DECODE_ERRORS as error:  # also raised for a range after the end
            if start > begin:
                raise
            raise BadClipError("unreadable", f"{name}: no audio that could be read ({summary(error)}).") from error
        yield samples.T.numpy()
        if end or samples.shape[1] < size - rate // 10:
            return


def _mixed(
    blocks: Iterator[np.ndarray], name: str, rate: int, begin: int, end: int, slack: int
) -> Iterator[np.ndarray]:
    """Blocks mixed down to mono; raises at the end if more than `slack` frames before `end` are missing."""
    read, failure = 0, "no more samples"
    try:
        for block in blocks:
            read += len(block)
            yield mix_down(block)
    except BadClipError:
        raise
    except DECODE_ERRORS as error:  # also libsndfile's end of a stream of unknown length
        failure = summary(error)
    if read < min(end - begin, max(1, end - begin - slack)):
        raise BadClipError(
            "truncated",
            f"{name}: ends after {(begin + read) / rate:.2f} of {end / rate:.2f} s ({failure}); fetch or write it "
            "again.",
        )
    if read == 0:
        raise BadClipError("empty", f"{name}: no samples; leave it out.")


__all__ = ["Recording", "decoder_recording", "open_recording", "read_waveform"]
