"""Encoded audio files: opening a path or bytes, copying a URL; formats and truncation."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Mapping
from typing import IO, Any, BinaryIO

import fsspec
import numpy as np

from ..installation import install_hint
from .errors import DECODE_ERRORS, READ_ERRORS, BadClipError, Exceptions, summary

# Chunks that hold the audio (WAV, AIFF, AU, CAF, W64, RF64) in libsndfile's log: "data : 384000 (should be 3796)".
SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
STREAMED_SIZES = (2**31 - 1, 2**31, 2**32 - 1)  # written by programs that do not know the length yet
URL_ERRORS: Exceptions = (*READ_ERRORS, ValueError, ImportError)  # fsspec: unknown protocols, missing packages
TORCHCODEC_ERRORS: Exceptions = (*DECODE_ERRORS, ImportError)


def describe(audio: Mapping[str, Any]) -> str:
    """Name of a row in messages: its path, or its size."""
    return audio.get("path") or f"{len(audio.get('bytes') or b'')} bytes without a name"


def open_audio(audio: Mapping[str, Any], name: str | None = None) -> BinaryIO:
    """Opened bytes or local path of an encoded file, which messages call `name`.

    Raises:
        BadClipError: If there are neither bytes nor a path.
        OSError: If the path cannot be opened.
    """
    if audio.get("refused"):  # by `EncodedAudio`
        raise BadClipError("unreadable", f"{name or describe(audio)}: {audio['refused']}.")
    if audio.get("bytes"):
        return io.BytesIO(audio["bytes"])  # shares the memory
    if audio.get("bytes") is None and audio.get("path"):
        return open(audio["path"], "rb", buffering=0)
    what = "neither bytes nor a path" if audio.get("bytes") is None else "no data: the file is empty"
    raise BadClipError("empty", f"{name or describe(audio)}: {what}; leave it out.")


def is_url(audio: Mapping[str, Any]) -> bool:
    """True if a row has only a URL, which must be copied before it can be opened."""
    return audio.get("bytes") is None and "://" in str(audio.get("path") or "")


def fetch(audio: Mapping[str, Any]) -> Mapping[str, Any]:
    """Row whose URL is read into bytes, so that it is transferred once; other rows are returned unchanged.

    Raises:
        BadClipError: If the URL cannot be read.
    """
    if not is_url(audio):
        return audio
    data = io.BytesIO()
    copy_url(audio["path"], data, describe(audio))
    return {"bytes": data.getvalue(), "path": audio["path"]}


def copy_url(url: str, destination: IO[bytes], name: str) -> None:
    """Copies the file at a URL that fsspec opens.

    Raises:
        BadClipError: If the URL cannot be read.
    """
    try:
        with fsspec.open(url, "rb") as source:
            shutil.copyfileobj(source, destination, 2**20)
        destination.flush()
    except URL_ERRORS as error:
        raise BadClipError(
            "unreadable",
            f"{name}: the URL cannot be read ({type(error).__name__}: {summary(error)}); check the address, the "
            "network and the protocol, or download the file first.",
        ) from error


def torchcodec_decoder(data: str | bytes, name: str) -> Any:
    """Decoder of torchcodec for a path or a file's bytes.

    Raises:
        BadClipError: If torchcodec or FFmpeg is missing, or the file is not readable.
    """
    try:
        from torchcodec.decoders import AudioDecoder

        return AudioDecoder(data)
    except TORCHCODEC_ERRORS as error:
        # Without FFmpeg's libraries, torchcodec may fail only at its first use.
        if not isinstance(error, (ImportError, OSError)) and "load libtorchcodec" not in str(error):
            raise BadClipError("unreadable", f"{name}: {summary(error)}") from error
        raise BadClipError(
            "missing_codec",
            f"{name}: this format needs torchcodec ({install_hint('codecs')}) and FFmpeg's libraries "
            f"(e.g. apt install ffmpeg): {summary(error)}",
        ) from error


def needs_torchcodec(magic: bytes) -> bool:
    """True for the first bytes of MP4/M4A, Matroska/WebM, ASF/WMA or ADTS AAC."""
    adts = magic[0] == 0xFF and len(magic) > 1 and magic[1] & 0xF6 == 0xF0
    return (
        magic[4:8] == b"ftyp" or magic.startswith((b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")) or adts
    )


def missing_bytes(log: str) -> int:
    """Number of bytes that the header announces and the file lacks, from libsndfile's log."""
    for announced, present in SHORT_CHUNK.findall(log):
        if int(announced) > int(present) and int(announced) not in STREAMED_SIZES:
            return int(announced) - int(present)
    return 0


def mix_down(waveform: np.ndarray) -> np.ndarray:
    """Mean of the channels, (frames, channels) -> (frames,); as a product, 10 times faster than `mean(1)`."""
    channels = waveform.shape[1]
    if channels == 1:
        return waveform[:, 0]
    with np.errstate(all="ignore"):  # non-finite samples are found later
        return waveform @ np.full(channels, 1 / channels, dtype=np.float32)


__all__ = [
    "copy_url",
    "describe",
    "fetch",
    "is_url",
    "missing_bytes",
    "mix_down",
    "needs_torchcodec",
    "open_audio",
    "torchcodec_decoder",
]
