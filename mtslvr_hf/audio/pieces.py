"""Pieces of encoded audio files: equal cuts of a recording, each an encoded file of its own."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from .clips import SILENCE_DBFS, level_dbfs
from .errors import BadClipError
from .files import describe
from .recording import Recording, open_recording


@dataclass(frozen=True)
class Cuts:
    """Cuts of a recording into pieces.

    Attributes:
        spans: First frame, and the frame after the last, of each piece that is not silent.
        silent: Number of silent pieces (deviation from the mean under -90 dBFS), which have no span.
    """

    spans: tuple[tuple[int, int], ...]
    silent: int


def cut_clip(audio: Mapping[str, Any], seconds: float) -> Cuts:
    """Cuts of an encoded audio file into pieces; the last one may be shorter. Memory does not grow with the length.

    Args:
        audio: See `decode_clip`.
        seconds: Length of a piece.

    Raises:
        BadClipError: If the file cannot be read to its end, a sample is not finite, or all pieces are silent.
    """
    spans, begin, silent = [], 0, 0
    with open_recording(audio) as recording:
        samples = _piece_samples(recording, seconds)
        for piece in _pieces(recording, samples):
            level = level_dbfs(np.resize(piece, samples))  # of the repeated piece, as `decode_clip` measures it
            if not math.isfinite(level) and level != -math.inf:
                raise BadClipError("non_finite", f"{recording.name}: contains infinite values or NaN.")
            if level < SILENCE_DBFS:
                silent += 1
            else:
                spans.append((begin, begin + len(piece)))
            begin += len(piece)
    if not spans:
        raise BadClipError("silent", f"{recording.name}: under {SILENCE_DBFS:.0f} dBFS in each of {silent} pieces.")
    return Cuts(tuple(spans), silent)


def read_piece(audio: Mapping[str, Any], span: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Piece of an encoded audio file as a row `{"bytes", "path"}`: float WAV, mono, at the file's own rate.

    Args:
        audio: See `decode_clip`.
        span: A span of `cut_clip`.
        seconds: Length of a piece; a shorter one is repeated to it.

    Raises:
        BadClipError: If the piece cannot be read.
    """
    begin, end = span
    with open_recording(audio) as recording:
        piece = np.concatenate(list(recording.read(begin, end)))
        rate, samples = recording.rate, _piece_samples(recording, seconds)
    encoded = io.BytesIO()
    soundfile.write(encoded, np.resize(piece, samples), rate, format="WAV", subtype="FLOAT")  # np.resize repeats
    return {"bytes": encoded.getvalue(), "path": f"{describe(audio)}, {begin / rate:.1f} to {end / rate:.1f} s"}


def _piece_samples(recording: Recording, seconds: float) -> int:
    return max(1, round(seconds * recording.rate))


def _pieces(recording: Recording, samples: int) -> Iterator[np.ndarray]:
    """Pieces (samples,) of a recording; the last one may be shorter."""
    rest = np.zeros(0, dtype=np.float32)
    for block in recording.read():
        rest = np.concatenate([rest, block])
        for begin in range(0, len(rest) - samples + 1, samples):
            yield rest[begin : begin + samples]
        rest = rest[len(rest) // samples * samples :]
    if len(rest):
        yield rest


__all__ = ["Cuts", "cut_clip", "read_piece"]
