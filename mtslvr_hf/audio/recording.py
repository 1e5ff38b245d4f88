"""Encoded audio of any length in blocks: what is in memory at once does not grow with the file."""

from __future__ import annotations

import io
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
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
    torchcodec_decoder,
)

BLOCK_SAMPLES = 2**18  # of all channels together: 1 MiB of float32
UNKNOWN_LENGTH_FRAMES = 4096  # libsndfile does not hand out the last, partial block of such a stream
RANGE_SECONDS = 60  # that torchcodec decodes at once
FORMATS = "WAV, FLAC, MP3, OGG, Opus, AIFF; with torchcodec M4A, WebM, AAC, WMA"


@dataclass(frozen=True)
class Recording:
    """Audio that is read in blocks, from its beginning each time it is asked for.

    Attributes:
        name: What messages call it.
        rate: Its sampling rate in Hz.
        read: Begins to read, and yields mono float32 blocks (samples,) at `rate`.
    """

    name: str
    rate: int
    read: Callable[[], Iterator[np.ndarray]]

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
        received = given = 0
        level = 0.0  # mean of the first block
        for block in self._checked(self.read()):
            level = level if received else float(block.mean(dtype=np.float64))
            received += len(block)
            block = block if resampler is None else resampler.resample_chunk(block)
            given += len(block)
            if len(block):
                yield block
        if received == 0:
            raise BadClip("empty", f"{self.name}: no samples; leave it out")
        if resampler is not None:
            block = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
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
    data, path = audio.get("bytes"), str(audio.get("path") or "")
    if data is None and "://" in path:
        with tempfile.TemporaryDirectory(prefix="mtslvr-") as folder:
            yield _open(_download(path, Path(folder) / "audio", name), name)
    elif data is None and path:
        yield _open(path, name)
    elif data is not None:
        yield _open(bytes(data), name)
    else:
        raise BadClip("empty", f"{name}: neither bytes nor a path; leave it out")


def decoder_recording(decoder: Any, name: str, exact: bool = False) -> Recording:
    """A recording from torchcodec's `AudioDecoder`, decoded in ranges of a minute.

    WebM's times are whole milliseconds: there, up to a millisecond may stand twice at a range's edge.

    Args:
        decoder: Has `metadata` and `get_samples_played_in_range`.
        name: What messages call it.
        exact: Whether the duration in its metadata is no estimate, so that a truncated file can be told.

    Raises:
        BadClip: If it does not decode.
    """
    rate = decoder.metadata.sample_rate
    if not rate:
        raise BadClip("unreadable", f"{name}: there is no audio in it that torchcodec finds")
    seconds = decoder.metadata.duration_seconds or 0.0 if exact else 0.0
    return Recording(name, int(rate), partial(_read_ranges, decoder, int(rate), float(seconds), name))


def _download(url: str, destination: Path, name: str) -> str:
    try:
        with fsspec.open(url, "rb") as source, open(destination, "wb") as file:
            shutil.copyfileobj(source, file, 2**20)
    except (*READ_ERRORS, ValueError, ImportError) as error:  # fsspec: unknown protocols, missing packages
        raise BadClip(
            "unreadable",
            f"{name}: the URL cannot be read ({type(error).__name__}: {summary(error)}); check the address, the "
            "network and that fsspec knows the protocol, or download the file first",
        ) from error
    return str(destination)


def _open(source: str | bytes, name: str) -> Recording:
    """Opens a local path or a file's bytes by what it begins with."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            magic = file.read(16)
    except IsADirectoryError as error:
        raise BadClip("unreadable", f"{name} is a folder; expected a file: pass the files in it") from error
    except FileNotFoundError as error:
        raise BadClip("unreadable", f"{name}: there is no such file; relative paths start at {os.getcwd()}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise BadClip("unreadable", f"{name}: {type(error).__name__}: {summary(error)}") from error
    if not magic:
        raise BadClip("empty", f"{name}: the file is empty; leave it out")
    if needs_torchcodec(magic):
        raw_aac = magic[0] == 0xFF  # has no container; its duration is a guess from the bit rate
        return decoder_recording(torchcodec_decoder(source, name), name, exact=not raw_aac)
    with _open_sound(source, name) as sound:
        return Recording(name, sound.samplerate, partial(_read_sound, source, name))


def _open_sound(source: str | bytes, name: str) -> soundfile.SoundFile:
    try:
        sound = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except DECODE_ERRORS as error:
        raise BadClip(
            "unreadable", f"{name}: no audio that could be read ({summary(error)}); expected {FORMATS}"
        ) from error
    missing = missing_bytes(sound.extra_info)
    if missing:
        sound.close()
        raise BadClip("truncated", f"{name}: {missing} bytes less than its header says; fetch or write it again")
    return sound


def _read_sound(source: str | bytes, name: str) -> Iterator[np.ndarray]:
    """Decodes what libsndfile reads; a file that ends too early is found out at its end."""
    with _open_sound(source, name) as sound:
        rate, frames = sound.samplerate, sound.frames
        known = frames <= UNKNOWN_FRAMES
        size = max(UNKNOWN_LENGTH_FRAMES, BLOCK_SAMPLES // sound.channels) if known else UNKNOWN_LENGTH_FRAMES
        read = 0
        while not known or read < frames:
            try:
                block = sound.read(size, dtype="float32", always_2d=True)  # (frames, channels)
            except DECODE_ERRORS as error:
                if not known:
                    return
                raise BadClip(
                    "truncated",
                    f"{name}: breaks off after {read / rate:.2f} s ({summary(error)}); fetch or write it again",
                ) from error
            if len(block) == 0:
                break
            read += len(block)
            yield mix_down(block)
        slack = MP3_SLACK_FRAMES if sound.format == "MP3" else 0
        if known and read < min(frames, max(1, frames - slack)):
            raise BadClip(
                "truncated",
                f"{name}: ends after {read / rate:.2f} of {frames / rate:.2f} s; fetch or write it again",
            )


def _read_ranges(decoder: Any, rate: int, seconds: float, name: str) -> Iterator[np.ndarray]:
    """Decodes range after range until one is not full; containers round their duration, by less than 0.1 s."""
    read, failure = 0, "no more samples"
    for start in itertools.count(0, RANGE_SECONDS):
        try:
            samples = decoder.get_samples_played_in_range(start, start + RANGE_SECONDS).data  # (channels, samples)
        except DECODE_ERRORS as error:  # it is one to ask for a range behind the end
            failure = summary(error)
            break
        read += samples.shape[1]
        yield mix_down(samples.T.numpy())
        if samples.shape[1] < (RANGE_SECONDS - 0.1) * rate:
            break
    if read == 0:
        raise BadClip("unreadable", f"{name}: no audio that could be read ({failure})")
    if read < (seconds - 0.1) * rate:
        raise BadClip(
            "truncated",
            f"{name}: ends after {read / rate:.2f} of {seconds:.2f} s ({failure}); fetch or write it again",
        )


__all__ = ["Recording", "decoder_recording", "open_recording"]
