"""Encoded audio of any length, decoded in blocks or in part: what is in memory does not grow with the file."""

from __future__ import annotations

import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from .errors import DECODE_ERRORS, BadClip, summary
from .files import (
    MP3_SLACK_FRAMES,
    UNKNOWN_FRAMES,
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
UNKNOWN_LENGTH_FRAMES = 4096  # libsndfile does not hand out the last, partial block of such a stream
RANGE_SECONDS = 60  # that torchcodec decodes at once
FORMATS = "WAV, FLAC, MP3, OGG, Opus, AIFF; with torchcodec M4A, WebM, AAC, WMA"


@dataclass(frozen=True)
class Recording:
    """Audio that can be read again and again.

    Attributes:
        name: What messages call it.
        rate: Its sampling rate in Hz.
        read: Yields mono float32 blocks (frames,) at `rate`, at least one frame. A file's takes `begin` and `end`: it
            seeks, and decodes these frames in one block.
        frames: Its length, if its header tells it.
    """

    name: str
    rate: int
    read: Callable[..., Iterator[np.ndarray]]
    frames: int | None = None

    def blocks(self, sampling_rate: int) -> Iterator[np.ndarray]:
        """Reads it at another rate, resampled as pre-training does (soxr HQ); the blocks' edges leave no trace.

        Args:
            sampling_rate: In Hz.

        Yields:
            Mono float32 (samples,), finite. Together they are at least one sample.

        Raises:
            BadClip: If it cannot be read to its end, is empty, or a sample is NaN or infinite.
        """
        resampler = self._resampler(sampling_rate)
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

    def _resampler(self, sampling_rate: int) -> soxr.ResampleStream | None:
        if self.rate == sampling_rate:
            return None
        try:
            return soxr.ResampleStream(self.rate, sampling_rate, 1, dtype="float32", quality="HQ")
        except DECODE_ERRORS as error:
            raise BadClip(
                "unreadable", f"{self.name}: {self.rate} Hz cannot be resampled to {sampling_rate} Hz: {error}"
            ) from error

    def _checked(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Passes blocks on that hold samples; stops at the first sample that is not finite."""
        position = 0
        for block in blocks:
            # A float64 sum is finite if and only if all its float32 terms are.
            if not math.isfinite(float(np.sum(block, dtype=np.float64))):
                bad = position + int(np.argmin(np.isfinite(block)))
                raise BadClip(
                    "non_finite",
                    f"{self.name}: the sample at {bad / self.rate:.3f} s is NaN or infinite; replace such samples, "
                    "or leave it out",
                )
            position += len(block)
            if len(block):
                yield block


@contextmanager
def open_recording(audio: Mapping[str, Any], name: str | None = None) -> Iterator[Recording]:
    """Opens an encoded file. A URL is copied to a temporary file first, which is gone when the context ends.

    Args:
        audio: `{"bytes", "path"}` as in an undecoded `datasets.Audio` column. Without bytes, the path is a local file
            or a URL that fsspec opens.
        name: What messages call it; its path unless given.

    Raises:
        BadClip: If it is missing, a folder, not audio, empty or cut off, or the URL cannot be read.
    """
    name = name or describe(audio)
    with ExitStack() as stack:
        if is_url(audio):
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="mtslvr-"))
            copy_url(audio["path"], copy, name)
            audio = {"path": copy.name}
        file, magic = _open(audio, name, stack)
        if needs_torchcodec(magic):
            source = bytes(audio["bytes"]) if audio.get("bytes") else str(audio["path"])
            raw_aac = magic[0] == 0xFF  # has no container; its duration is a guess from the bit rate
            yield decoder_recording(torchcodec_decoder(source, name), name, exact=not raw_aac)
        else:
            yield _sound_recording(_openings(audio, file, name, stack), name)


def decoder_recording(decoder: Any, name: str, exact: bool = False) -> Recording:
    """A recording from torchcodec's `AudioDecoder`, decoded in ranges of a minute.

    WebM's times are whole milliseconds: there, up to a millisecond may stand twice at a range's edge.

    Args:
        decoder: Has `metadata` and `get_samples_played_in_range`.
        name: What messages call it.
        exact: Whether the duration in its metadata is no estimate, so that a truncated file can be told.

    Raises:
        BadClip: If there is no audio in it.
    """
    rate = int(decoder.metadata.sample_rate or 0)
    if not rate:
        raise BadClip("unreadable", f"{name}: there is no audio in it that torchcodec finds")
    frames = int((decoder.metadata.duration_seconds or 0) * rate) if exact else 0
    slack = rate // 10  # containers round their duration
    decode = partial(_decode_ranges, decoder, rate, slack, name)
    return Recording(
        name, rate, partial(_read, decode, RANGE_SECONDS * rate, name, rate, frames, slack), frames or None
    )


def read_waveform(audio: Mapping[str, Any], sampling_rate: int) -> np.ndarray:
    """All of an undecoded row `{"bytes", "path"}`: mono, (samples,) float32, not normalised. Silence is allowed.

    Raises:
        BadClip: If it is missing, no audio, cut off, empty or not finite; the message says which and names it.
    """
    with open_recording(audio) as recording:
        return np.concatenate(list(recording.blocks(sampling_rate)))


def _open(audio: Mapping[str, Any], name: str, stack: ExitStack) -> tuple[BinaryIO, bytes]:
    """Opens a file and reads what it begins with."""
    try:
        file = stack.enter_context(open_audio(audio, name))
        magic = file.read(16)
        file.seek(0)
    except IsADirectoryError as error:
        raise BadClip("unreadable", f"{name} is a folder; expected a file: pass the files in it") from error
    except FileNotFoundError as error:
        raise BadClip("unreadable", f"{name}: there is no such file; relative paths start at {os.getcwd()}") from error
    except BadClip:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise BadClip("unreadable", f"{name}: {type(error).__name__}: {summary(error)}") from error
    if not magic:
        raise BadClip("empty", f"{name}: the file is empty; leave it out")
    return file, magic


def _openings(audio: Mapping[str, Any], file: BinaryIO, name: str, stack: ExitStack) -> Iterator[soundfile.SoundFile]:
    """Opens a file with libsndfile as often as it is read: version 1.2 seeks wrongly in OGG Vorbis after decoding.

    libsndfile takes a file's descriptor: from a path it would guess formats by the suffix.
    """
    while True:
        source = file if isinstance(file, io.BytesIO) else file.fileno()
        try:
            sound = stack.enter_context(soundfile.SoundFile(source, closefd=False))
        except DECODE_ERRORS as error:
            raise BadClip(
                "unreadable", f"{name}: no audio that could be read ({summary(error)}); expected {FORMATS}"
            ) from error
        missing = missing_bytes(sound.extra_info)
        if missing:
            raise BadClip("truncated", f"{name}: {missing} bytes less than its header says; fetch or write it again")
        yield sound
        file = stack.enter_context(open_audio(audio))


def _sound_recording(openings: Iterator[soundfile.SoundFile], name: str) -> Recording:
    sound = next(openings)
    rate, frames = sound.samplerate, sound.frames if sound.frames <= UNKNOWN_FRAMES else None
    size = UNKNOWN_LENGTH_FRAMES if frames is None else max(UNKNOWN_LENGTH_FRAMES, BLOCK_SAMPLES // sound.channels)
    slack = MP3_SLACK_FRAMES if sound.format == "MP3" else 0
    decode = partial(_decode_sound, itertools.chain([sound], openings))
    return Recording(name, rate, partial(_read, decode, size, name, rate, frames or 0, slack), frames)


def _decode_sound(
    openings: Iterator[soundfile.SoundFile], begin: int, end: int | None, size: int
) -> Iterator[np.ndarray]:
    """Decodes what libsndfile reads to (frames, channels)."""
    sound = next(openings)
    if begin and sound.seekable():
        sound.seek(begin)
    elif begin:
        sound.read(begin, dtype="float32")
    end = sound.frames if end is None else end
    for start in range(begin, end, size):
        block = sound.read(min(size, end - start), dtype="float32", always_2d=True)
        if len(block) == 0:
            return
        yield block


def _decode_ranges(
    decoder: Any, rate: int, slack: int, name: str, begin: int, end: int | None, size: int
) -> Iterator[np.ndarray]:
    """Decodes range after range to (frames, channels), until one is not full."""
    for start in itertools.count(begin, size) if end is None else [begin]:
        try:
            samples = decoder.get_samples_played_in_range(start / rate, (start + size) / rate).data
        except DECODE_ERRORS as error:  # it is one to ask for a range behind the end
            if start > begin:
                raise
            raise BadClip("unreadable", f"{name}: no audio that could be read ({summary(error)})") from error
        yield samples.T.numpy()
        if samples.shape[1] < size - slack:
            return


def _read(
    decode: Callable[[int, int | None, int], Iterator[np.ndarray]],
    size: int,
    name: str,
    rate: int,
    frames: int,
    slack: int,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[np.ndarray]:
    """Mixes decoded blocks down; at the end, tells a file that is truncated by more than `slack`."""
    blocks = decode(begin, end, size if end is None else end - begin)
    read, wanted, failure = 0, (end or frames) - begin, "no more samples"
    while True:
        try:
            block = next(blocks, None)
        except BadClip:
            raise
        except DECODE_ERRORS as error:  # libsndfile's end of a stream of unknown length is one
            block, failure = None, summary(error)
        if block is None:
            break
        read += len(block)
        yield mix_down(block)
    if read < min(wanted, max(1, wanted - slack)):
        raise BadClip(
            "truncated",
            f"{name}: ends after {(begin + read) / rate:.2f} of {(begin + wanted) / rate:.2f} s ({failure}); fetch or "
            "write it again",
        )
    if read == 0:
        raise BadClip("empty", f"{name}: no samples; leave it out")


__all__ = ["Recording", "decoder_recording", "open_recording", "read_waveform"]
