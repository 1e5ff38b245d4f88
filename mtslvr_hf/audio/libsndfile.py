"""libsndfile's view of an encoded file: every sample that it has, whatever its header states."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import soundfile

from .containers import MPEG_TAGS, Data, find_data, joined_streams
from .files import scratch_file
from .mpeg import Stream, find_streams, header_fits
from .native_messages import no_native_messages

BLOCK_SAMPLES = 2**17  # of all channels together: 512 KiB of float32
UNKNOWN_FRAMES = 2**62  # libsndfile returns about 2**63 for a stream without a length in its header
COPY_BYTES = 2**18
MEMORY_BYTES = 64 * 2**20  # larger copies of a file are on disk
LOSSY_SLACK_SECONDS = 0.1  # of a header's count, which may hold the encoder's padding
NOT_WRITTEN = np.uint32(0x7FC0_6D74)  # a NaN that no file holds
FORMATS = "WAV, FLAC, MP3, OGG, Opus, AIFF; with torchcodec M4A, WebM, AAC, WMA"


class _ForwardReader(soundfile.SoundFile):
    """File that is read forward. soundfile would seek behind every read, which fails at the end of some streams."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class Sound:
    """File that libsndfile reads.

    Attributes:
        path: Local path.
        rate: Sampling rate in Hz.
        channels: Number of channels.
        frames: Length in frames; None if it is unknown.
        frames_are_a_guess: True if the file may have fewer frames without being truncated.
        slack_frames: Frames that may be missing from `frames`.
        missing_frames: Frames that are proved to be missing, because the file is shorter than its header states.
        missing: What is missing, in words.
    """

    path: str
    rate: int
    channels: int
    frames: int | None
    frames_are_a_guess: bool = False
    slack_frames: int = 0
    missing_frames: int = 0
    missing: str = ""

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """Blocks (frames, channels) between two frames; with an end, in one block.

        The file is opened each time: libsndfile 1.2 seeks wrongly in OGG Vorbis after a read.
        """
        size = max(1, BLOCK_SAMPLES // self.channels)
        with _opened(self.path) as sound:
            position = _seek(sound, begin, size)
            while end is None or position < end:
                block, error = _decode(sound, size if end is None else end - position)
                position += len(block)
                if len(block):
                    yield block
                if error is not None:
                    raise error
                if len(block) == 0:
                    return


@contextmanager
def open_sounds(path: str, name: str, whole: bool = True) -> Iterator[Sequence[Sound]]:
    """Context of the files in a local file: one, or several that were joined.

    Args:
        path: Local path.
        name: Name in messages.
        whole: False to look at the headers alone where they agree with the file's size. Then joined FLAC and Ogg
            files are taken for the first of them.

    Raises:
        soundfile.LibsndfileError, OSError and others of `decode_errors`: If libsndfile cannot read it.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", buffering=0))
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        magic = file.read(16)
        containers = find_data(file, size)
        if containers:
            yield [sound for data in containers for sound in _of_container(file, path, size, data, stack)]
            return
        starts = joined_streams(file, size, magic) if whole else []
        if len(starts) > 1:
            parts = [
                stack.enter_context(_copy(file, [(begin, end)])) for begin, end in zip(starts, [*starts[1:], size])
            ]
            yield [_sound_of(part) for part in parts]
            return
        sound = _sound_of(path)
        trusted = not sound.frames_are_a_guess or (not whole and header_fits(file, size))
        yield [sound] if trusted else _of_mpeg(file, path, 0, size, sound, stack)


def _of_container(file: BinaryIO, path: str, size: int, data: Data, stack: ExitStack) -> list[Sound]:
    """Sounds of a WAV file or another container of chunks."""
    if data.codec in MPEG_TAGS:
        end = data.start + (data.present if data.stated is None else min(data.stated, data.present))
        sounds = _of_mpeg(file, None, data.start, end, None, stack)
        if sounds:
            return [_with_missing(sound, data) for sound in sounds]
    if data.sizes:
        path = stack.enter_context(_copy(file, [(data.start, data.end)], _patched_head(file, data)))
    elif (data.begin, data.end) != (0, size):
        path = stack.enter_context(_copy(file, [(data.begin, data.end)]))
    return [_with_missing(_sound_of(path), data)]


def _with_missing(sound: Sound, data: Data) -> Sound:
    if not data.missing or sound.frames is None:
        return sound
    frames = max(1, round(sound.frames * data.missing / max(1, data.present)))
    return replace(sound, missing_frames=frames, missing=f"{data.missing:,} bytes less than in its header")


def _of_mpeg(
    file: BinaryIO, path: str | None, begin: int, end: int, opened: Sound | None, stack: ExitStack
) -> list[Sound]:
    """Sounds of MPEG audio: of the file itself where its header counts all frames, else of a copy that does."""
    streams = find_streams(file, begin, end)
    if path is not None and opened is not None and len(streams) < 2 and _is_counted(streams, opened):
        return [opened]
    sounds = []
    for stream in streams:
        runs = [(first, last) for first, last in stream.runs]
        sound = _sound_of(stack.enter_context(_copy(file, runs, stream.counted_header())))
        if stream.missing:
            frames = stream.missing * stream.samples_per_frame
            text = f"{stream.missing:,} of {stream.stated:,} MPEG frames are missing"
            sound = replace(sound, missing_frames=frames, missing=text)
        sounds.append(sound)
    return sounds


def _is_counted(streams: Sequence[Stream], opened: Sound) -> bool:
    """True if libsndfile knows of all frames."""
    if not streams:  # free format
        return True
    (stream,) = streams
    return stream.stated == stream.frames or (
        stream.stated is None and opened.frames == stream.frames * stream.samples_per_frame
    )


@contextmanager
def _opened(path: str) -> Iterator[_ForwardReader]:
    """Context of a file opened through a descriptor: libsndfile guesses the format of a path by its suffix."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        with no_native_messages():
            sound = _ForwardReader(descriptor, closefd=False)
        try:
            yield sound
        finally:
            sound.close()
    finally:
        os.close(descriptor)


def _sound_of(path: str) -> Sound:
    with _opened(path) as sound:
        frames = sound.frames if sound.frames <= UNKNOWN_FRAMES else None
        mpeg = sound.format == "MP3" or sound.subtype.startswith("MPEG_LAYER")
        lossless = sound.subtype.startswith("PCM") or sound.subtype in ("FLOAT", "DOUBLE")
        slack = 0 if lossless else round(LOSSY_SLACK_SECONDS * sound.samplerate)
        return Sound(path, sound.samplerate, sound.channels, frames, mpeg, slack)


def _seek(sound: _ForwardReader, begin: int, size: int) -> int:
    """Position behind a seek to a frame; reads up to it where there is no seeking."""
    if begin and sound.frames <= UNKNOWN_FRAMES:
        return sound.seek(begin)
    position = 0
    while position < begin:
        block, error = _decode(sound, min(size, begin - position))
        position += len(block)
        if error is not None:
            raise error
        if len(block) == 0:
            break
    return position


def _decode(sound: _ForwardReader, frames: int) -> tuple[np.ndarray, Exception | None]:
    """Up to a number of frames (frames, channels), and the error that ended them: soundfile would drop the frames."""
    block = np.full((frames, sound.channels), NOT_WRITTEN, dtype=np.uint32).view(np.float32)
    try:
        with no_native_messages():
            return sound.read(out=block), None
    except soundfile.LibsndfileError as error:
        written = (block.view(np.uint32) != NOT_WRITTEN).any(axis=1).nonzero()[0]
        return block[: written[-1] + 1 if len(written) else 0], error


def _patched_head(file: BinaryIO, data: Data) -> bytes:
    """Header of a container, with the size of its data in the place of 0."""
    file.seek(data.begin)
    head = bytearray(file.read(data.start - data.begin))
    for place, kind in data.sizes:
        size = struct.calcsize(kind)
        value = data.present
        place -= data.begin
        head[place : place + size] = struct.pack(kind, min(value, 2 ** (8 * size - 1) - 1))
    return bytes(head)


@contextmanager
def _copy(file: BinaryIO, parts: Sequence[tuple[int, int]], head: bytes = b"") -> Iterator[str]:
    """Context of a path to a copy of parts of a file, behind a head."""
    with scratch_file(in_memory=sum(end - begin for begin, end in parts) <= MEMORY_BYTES) as (copy, path):
        copy.write(head)
        for begin, end in parts:
            file.seek(begin)
            while begin < end and (block := file.read(min(COPY_BYTES, end - begin))):
                copy.write(block)
                begin += len(block)
        copy.flush()
        yield path


__all__ = ["BLOCK_SAMPLES", "FORMATS", "Sound", "open_sounds"]
