"""Recordings: encoded audio of any length, decoded in blocks or in part, in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn

import numpy as np
import soxr

from .errors import BadClipError, decode_errors, summary
from .files import describe, mix_down, needs_torchcodec, path_of, torchcodec_decoder
from .libsndfile import FORMATS, Sound, open_sounds

RANGE_SECONDS = 60  # decoded at once by torchcodec
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; others are damaged headers, and would take memory or time without limit
MAX_CHANNELS = 64
MAX_SECONDS = 12 * 3600.0  # of audio that is held whole in memory
SLACK_SECONDS = 0.1  # containers round their durations
END_SECONDS = 1.0  # a file with samples in the last second of its duration is not truncated
LATEST_SECOND = 10**9  # behind the end of any recording
NO_MORE_FRAMES = "No audio frames were decoded"  # torchcodec's error for a range without samples
OnTruncated = Literal["error", "keep"]


@dataclass(frozen=True)
class Recording:
    """Audio that can be read several times.

    Attributes:
        name: Name in messages.
        rate: Sampling rate in Hz.
        read: Yields mono float32 blocks (frames,) at `rate`, together at least one frame. A file's `read(begin, end)`
            seeks and decodes these frames in one block.
        frames: Length in frames, if the file's size or its format prove it.
    """

    name: str
    rate: int
    read: Callable[..., Iterator[np.ndarray]]
    frames: int | None = None

    def __post_init__(self) -> None:
        check_rate(self.rate, self.name)

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
            except decode_errors() as error:
                message = f"{self.name}: {self.rate} Hz cannot be resampled to {sampling_rate} Hz: {error}"
                raise BadClipError("unreadable", message) from error
        given, level = 0, None  # mean of the first block
        for block in itertools.chain(self._checked(self.read()), [np.zeros(0, dtype=np.float32)]):
            level = block.mean(dtype=np.float64) if level is None else level
            if resampler is not None:
                block = resampler.resample_chunk(block, last=len(block) == 0)
                if not math.isfinite(float(np.sum(block, dtype=np.float64))):
                    raise BadClipError(
                        "non_finite",
                        f"{self.name}: samples at about {given / sampling_rate:.3f} s are too large to be resampled; "
                        "replace such samples, or leave it out.",
                    )
            given += len(block)
            if len(block):
                yield block
        if given == 0:  # shorter than a sample of the new rate
            yield np.full(1, level, dtype=np.float32)

    def samples(self, sampling_rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray:
        """Whole waveform at a rate in Hz, (samples,) float32.

        Raises:
            BadClipError: As for `blocks`; also if it is longer than `max_seconds`.
        """
        limit = max_seconds * sampling_rate
        if self.frames is not None and self.frames > max_seconds * self.rate:
            self._too_long(self.frames / self.rate, max_seconds)
        whole, used = np.empty(0, dtype=np.float32), 0
        for block in self.blocks(sampling_rate):
            if used + len(block) > limit:
                self._too_long(None, max_seconds)
            if used + len(block) > len(whole):
                whole.resize(max(2 * len(whole), used + len(block)), refcheck=False)
            whole[used : used + len(block)] = block
            used += len(block)
        whole.resize(used, refcheck=False)
        return whole

    def _too_long(self, seconds: float | None, limit: float) -> NoReturn:
        long = "longer" if seconds is None else f"{seconds / 3600:.1f} hours, longer"
        raise BadClipError(
            "unreadable",
            f"{self.name}: {long} than max_seconds={limit:g} ({limit / 3600:.1f} hours), which limits audio that is "
            "held whole in memory; cut it into parts.",
        )

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


def check_rate(rate: float, name: str, channels: int = 1) -> None:
    """Checks a rate in Hz and a number of channels.

    Raises:
        BadClipError: If the rate is not from 1,000 to 768,000 Hz, or there are more than 64 channels.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadClipError(
            "unreadable",
            f"{name}: the sampling rate is {rate:,} Hz; expected {MIN_RATE:,} to {MAX_RATE:,} Hz. Its header may be "
            "damaged.",
        )
    if channels > MAX_CHANNELS:
        raise BadClipError(
            "unreadable", f"{name}: {channels:,} channels; expected at most {MAX_CHANNELS}. Its header may be damaged."
        )


@contextmanager
def open_recording(
    audio: Mapping[str, Any], name: str | None = None, on_truncated: OnTruncated = "error", whole: bool = True
) -> Iterator[Recording]:
    """Context of an opened encoded file; a URL is copied to a temporary file first.

    libsndfile reads it, or torchcodec, where it is installed and libsndfile cannot. Everything that the file yields is
    read: it is truncated only if its header states more samples (WAV, FLAC, MP3, M4A, ...) or decoding fails.

    Args:
        audio: `{"bytes", "path"}` as in an undecoded `datasets.Audio` column. Without bytes, the path is a local file
            or a URL that fsspec opens.
        name: Name in messages; default: the path.
        on_truncated: "error", or "keep" to take the samples that a truncated file has.
        whole: False if only a part will be read: long files are then not searched for a second file that was joined to
            the first (FLAC, Ogg), and an MP3 header that agrees with the file's size is believed.

    Raises:
        BadClipError: If the file is missing, a folder, not a regular file, not audio, empty or truncated, or the URL
            cannot be read.
        ValueError: If `on_truncated` is something else.
    """
    if on_truncated not in ("error", "keep"):
        raise ValueError(f"`on_truncated` must be 'error' or 'keep'; got {on_truncated!r}.")
    name = name or describe(audio)
    with path_of(audio, name) as path:
        try:
            with open(path, "rb", buffering=0) as file:
                magic = file.read(16)
        except OSError as error:
            raise BadClipError("unreadable", f"{name}: {type(error).__name__}: {summary(error)}") from error
        if not magic:
            raise BadClipError("empty", f"{name}: the file is empty; leave it out.")
        if needs_torchcodec(magic):
            yield _decoded_by_torchcodec(path, name, magic, on_truncated)
            return
        with ExitStack() as stack:
            try:
                sounds = stack.enter_context(open_sounds(path, name, whole))
            except decode_errors() as error:
                yield _second_try(path, name, magic, on_truncated, error)
                return
            yield _sound_recording(sounds, name, on_truncated)


def _second_try(path: str, name: str, magic: bytes, on_truncated: OnTruncated, error: BaseException) -> Recording:
    """Recording by torchcodec of what libsndfile does not know."""
    try:
        return _decoded_by_torchcodec(path, name, magic, on_truncated)
    except BadClipError as second:
        if isinstance(error, BadClipError):
            raise error from None
        more = "" if second.reason == "missing_codec" else f"; {summary(second)}"
        raise BadClipError(
            "unreadable", f"{name}: no audio that could be read ({summary(error)}{more}); expected {FORMATS}."
        ) from error


def _decoded_by_torchcodec(path: str, name: str, magic: bytes, on_truncated: OnTruncated) -> Recording:
    exact = magic[4:8] == b"ftyp"  # elsewhere, the duration may be an estimate, or that of the video
    return decoder_recording(torchcodec_decoder(path, name), name, exact, on_truncated)


def decoder_recording(decoder: Any, name: str, exact: bool = False, on_truncated: OnTruncated = "error") -> Recording:
    """Recording of torchcodec's `AudioDecoder`, decoded in ranges of a minute.

    The rate is that of the samples, which may differ from the file's. WebM's times are whole milliseconds: at a
    range's edge, up to a millisecond may be repeated.

    Args:
        decoder: Has `metadata` and `get_samples_played_in_range`.
        name: Name in messages.
        exact: True if the duration in the metadata is exact, so that a truncated file is detected.
        on_truncated: See `open_recording`.

    Raises:
        BadClipError: If there is no audio in it.
    """
    try:
        stated = decoder.metadata.sample_rate
    except decode_errors() as error:
        raise BadClipError("unreadable", f"{name}: torchcodec finds no audio in it: {summary(error)}") from error
    if not stated:
        raise BadClipError("unreadable", f"{name}: torchcodec finds no audio in it; leave it out.")
    check_rate(stated, name, int(getattr(decoder.metadata, "num_channels", None) or 1))
    first, is_whole = _range(decoder, 0, RANGE_SECONDS), False
    if first is None:  # it starts later
        first, is_whole = _range(decoder, 0, LATEST_SECOND), True
    if isinstance(first, Exception) or first is None:
        what = summary(first) if first is not None else NO_MORE_FRAMES
        raise BadClipError("unreadable", f"{name}: no audio that could be read ({what}).")
    rate = int(getattr(first, "sample_rate", None) or stated)
    check_rate(rate, name, first.data.shape[0])
    metadata = decoder.metadata
    duration = getattr(metadata, "duration_seconds_from_header", getattr(metadata, "duration_seconds", None))
    stated_seconds = float(duration or 0) if exact and on_truncated == "error" else 0.0
    blocks = partial(_decode_ranges, decoder, first, is_whole, name, rate, stated_seconds)
    read = partial(_read_ranges, blocks, name, rate, on_truncated)
    return Recording(name, rate, read)


def read_waveform(
    audio: Mapping[str, Any],
    sampling_rate: int,
    on_truncated: OnTruncated = "error",
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Whole waveform of an undecoded row `{"bytes", "path"}`: mono float32 (samples,), not normalized, maybe silent.

    Raises:
        BadClipError: If it is missing, no audio, truncated, empty, not finite, or longer than `max_seconds`.
    """
    with open_recording(audio, None, on_truncated) as recording:
        return recording.samples(sampling_rate, max_seconds)


def _sound_recording(sounds: Sequence[Sound], name: str, on_truncated: OnTruncated) -> Recording:
    """Recording of what libsndfile opened: one file, or several that were joined."""
    rate = sounds[0].rate
    for sound in sounds:
        check_rate(sound.rate, name, sound.channels)
        if sound.rate != rate:
            raise BadClipError("unreadable", f"{name}: joined from files of {rate} and {sound.rate} Hz; split it.")
        if sound.missing_frames and on_truncated == "error":
            present = sound.frames or 0
            whole = (present + sound.missing_frames) / rate
            raise BadClipError("truncated", _truncated(name, present / rate, whole, sound.missing))
    known = on_truncated == "error" and all(sound.frames is not None for sound in sounds)
    frames = sum(sound.frames or 0 for sound in sounds) if known else None
    return Recording(name, rate, partial(_read_sounds, sounds, name, on_truncated), frames)


def _read_sounds(
    sounds: Sequence[Sound], name: str, on_truncated: OnTruncated, begin: int = 0, end: int | None = None
) -> Iterator[np.ndarray]:
    """Mono blocks of one or several joined files."""
    if len(sounds) == 1:
        (sound,) = sounds
        expected = None
        if sound.frames is not None and not sound.frames_are_a_guess:
            expected = (min(end, sound.frames) if end else sound.frames) - begin - sound.slack_frames
        yield from _mixed(sound.read(begin, end), name, sound.rate, begin, expected, on_truncated)
        return
    blocks = itertools.chain.from_iterable(
        _mixed(sound.read(), name, sound.rate, 0, None, on_truncated) for sound in sounds
    )
    yield from _part(blocks, begin, end)


def _part(blocks: Iterator[np.ndarray], begin: int, end: int | None) -> Iterator[np.ndarray]:
    """Part of blocks that cannot be read from the middle; a part with an end is one block."""
    place, found = 0, []
    for block in blocks:
        part = block[max(0, begin - place) : None if end is None else max(0, end - place)]
        place += len(block)
        if end is None and len(part):
            yield part
        elif len(part):
            found.append(part)
        if end is not None and place >= end:
            break
    if found:
        yield np.concatenate(found)


def _range(decoder: Any, begin: float, end: float) -> Any:
    """Samples in a range of seconds; None if there are none; an error of the decoder."""
    try:
        samples = decoder.get_samples_played_in_range(begin, end)
    except decode_errors() as error:
        return None if NO_MORE_FRAMES in str(error) else error
    return samples if samples.data.shape[-1] else None


def _read_ranges(
    blocks: Callable[[], Iterator[np.ndarray]],
    name: str,
    rate: int,
    on_truncated: OnTruncated,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[np.ndarray]:
    """Mono blocks decoded by torchcodec, which decodes all that lies before a part, too."""
    yield from _part(_mixed(blocks(), name, rate, 0, None, on_truncated), begin, end)


def _decode_ranges(
    decoder: Any, first: Any, is_whole: bool, name: str, rate: int, stated_seconds: float
) -> Iterator[np.ndarray]:
    """Decoded ranges (frames, channels) up to the end, over gaps; `first` is the first one, or all there is."""
    read, last = 0, is_whole
    samples = first
    for start in itertools.count(0, RANGE_SECONDS):
        if start:
            samples = _range(decoder, start, start + RANGE_SECONDS)
            if samples is None:  # the end, or a gap
                samples, last = _range(decoder, start, LATEST_SECOND), True
        if isinstance(samples, Exception):
            raise samples
        if samples is None:
            break
        if getattr(samples, "sample_rate", rate) != rate:
            raise BadClipError(
                "unreadable", f"{name}: the sampling rate changes to {samples.sample_rate} Hz; split it."
            )
        read += samples.data.shape[1]
        yield samples.data.T.numpy()
        if last:
            break
    # Gaps and a late start are no loss: the end is there.
    if read >= (stated_seconds - SLACK_SECONDS) * rate:
        return
    end = _range(decoder, max(0.0, stated_seconds - END_SECONDS), LATEST_SECOND)
    if end is None or isinstance(end, Exception):
        raise BadClipError("truncated", _truncated(name, read / rate, stated_seconds, "no more samples"))


def _truncated(name: str, seconds: float, stated: float | None, reason: str) -> str:
    of = f" of {stated:.2f}" if stated else ""
    return (
        f"{name}: ends after {seconds:.2f}{of} s ({reason}); fetch or write it again, or take what is there with "
        "on_truncated='keep'."
    )


def _mixed(
    blocks: Iterator[np.ndarray], name: str, rate: int, begin: int, expected: int | None, on_truncated: OnTruncated
) -> Iterator[np.ndarray]:
    """Blocks mixed down to mono; raises at the end if frames are missing.

    Args:
        expected: Frames that the file must have behind `begin`; None if that is unknown.
    """
    read, failure = 0, None
    try:
        for block in blocks:
            read += len(block)
            yield mix_down(block)
    except BadClipError:
        raise
    except decode_errors() as error:
        failure = summary(error)
    if on_truncated == "error" and (failure is not None or (expected is not None and read < max(1, expected))):
        stated = (begin + expected) / rate if expected and expected > read else None
        reason = "empty" if read == 0 and failure is None and not expected else "truncated"
        if reason == "truncated":
            raise BadClipError(reason, _truncated(name, (begin + read) / rate, stated, failure or "no more samples"))
    if read == 0:
        raise BadClipError("empty", f"{name}: no samples; leave it out.")


__all__ = [
    "MAX_SECONDS",
    "OnTruncated",
    "Recording",
    "check_rate",
    "decoder_recording",
    "open_recording",
    "read_waveform",
]
