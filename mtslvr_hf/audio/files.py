"""Encoded audio files: a row's path, bytes or URL as a file that can be opened several times; torchcodec."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urlsplit

import fsspec
import numpy as np

from ..files import open_regular
from ..installation import install_hint
from .errors import BadClipError, decode_errors, mask_secrets, read_errors, summary

MAX_FILE_BYTES = 2 * 10**9  # of a file in a tar archive or at a URL
COPY_BYTES = 2**18
REFUSED = b"mtslvr refused: "  # begins the bytes of a row that a source did not read; the reason follows


def describe(audio: Mapping[str, Any]) -> str:
    """Name of a row in messages: its path without passwords, or its size."""
    path = audio.get("path")
    return mask_secrets(os.fspath(path)) if path else f"{len(audio.get('bytes') or b'')} bytes without a name"


def refused_bytes(reason: str) -> bytes:
    """Bytes of a row whose file a source did not read; opening them raises BadClipError with the reason."""
    return REFUSED + reason.encode()


def open_audio(audio: Mapping[str, Any], name: str | None = None) -> BinaryIO:
    """Opened bytes, local path or copied URL of an encoded file, which messages call `name`.

    Raises:
        BadClipError: If there are neither bytes nor a path, or the URL cannot be read.
        OSError: If the path cannot be opened, or is no regular file.
    """
    if audio.get("refused"):  # by `EncodedAudio`
        raise BadClipError("unreadable", f"{name or describe(audio)}: {audio['refused']}.")
    data = audio.get("bytes")
    if data:
        if bytes(data[: len(REFUSED)]) == REFUSED:
            raise BadClipError("unreadable", f"{name or describe(audio)}: {bytes(data[len(REFUSED) :]).decode()}")
        return io.BytesIO(data)  # shares the memory
    if data is None and audio.get("path"):
        if is_url(audio):
            copy = tempfile.TemporaryFile(prefix="mtslvr-")  # noqa: SIM115  # the caller closes it
            copy_url(audio["path"], copy, name or describe(audio))
            copy.seek(0)
            return copy
        return open_regular(file_of(audio["path"]))
    what = "neither bytes nor a path" if data is None else "no data: the file is empty"
    raise BadClipError("empty", f"{name or describe(audio)}: {what}; leave it out.")


@contextmanager
def path_of(audio: Mapping[str, Any], name: str) -> Iterator[str]:
    """Context of a path that opens a row's encoded file any number of times, whether it has a path, bytes or a URL.

    Decoders get paths: an interrupt or a read error inside a Python file object would be lost in their C code.

    Raises:
        BadClipError: If the file is missing, a folder or not regular, or the URL cannot be read.
    """
    try:
        with open_audio(audio, name) as file:
            if not isinstance(file, io.BytesIO) and not is_url(audio):
                path = file_of(audio["path"])
            elif not isinstance(file, io.BytesIO) and os.path.exists(f"/proc/self/fd/{file.fileno()}"):
                path = f"/proc/self/fd/{file.fileno()}"
            else:
                with scratch_file(in_memory=True) as (copy, path):
                    while block := file.read(COPY_BYTES):
                        copy.write(block)
                    copy.flush()
                    yield path
                return
            yield path
    except BadClipError:
        raise
    except IsADirectoryError as error:
        raise BadClipError("unreadable", f"{name} is a folder; expected a file: pass the files in it.") from error
    except FileNotFoundError as error:
        raise BadClipError(
            "unreadable", f"{name}: there is no such file; relative paths start at {os.getcwd()}."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise BadClipError("unreadable", f"{name}: {type(error).__name__}: {summary(error)}") from error


@contextmanager
def scratch_file(in_memory: bool) -> Iterator[tuple[BinaryIO, str]]:
    """Context of an empty file, and a path that opens it; on Linux nothing remains of it when the process is killed.

    Args:
        in_memory: Keep it in memory, where the system can.
    """
    if in_memory and hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd"):
        with open(os.memfd_create("mtslvr"), "r+b", buffering=0) as file:
            yield file, f"/proc/self/fd/{file.fileno()}"
    elif os.path.exists("/proc/self/fd"):
        with tempfile.TemporaryFile(prefix="mtslvr-") as unnamed:
            yield unnamed, f"/proc/self/fd/{unnamed.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(prefix="mtslvr-") as named:
            yield named, named.name  # type: ignore[misc]


def is_url(audio: Mapping[str, Any]) -> bool:
    """True if a row has only a URL, which must be copied before it can be opened; file:// is a local path."""
    path = str(audio.get("path") or "")
    return audio.get("bytes") is None and "://" in path and not path.startswith("file://")


def file_of(path: str | os.PathLike) -> str:
    """Path of a local file, also of a URL file://."""
    path = os.fspath(path)
    if not path.startswith("file://"):
        return path
    plain = path.removeprefix("file://")
    return plain if os.path.exists(plain) else unquote(urlsplit(path).path)  # fsspec does not decode %20


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
        BadClipError: If the URL cannot be read, or has more than `MAX_FILE_BYTES`.
    """
    try:
        with fsspec.open(url, "rb") as source:
            copied = 0
            while block := source.read(COPY_BYTES):
                copied += len(block)
                if copied > MAX_FILE_BYTES:
                    raise BadClipError("unreadable", f"{name}: {too_large()}")
                destination.write(block)
        destination.flush()
    except BadClipError:
        raise
    except read_errors(ValueError, ImportError) as error:  # unknown protocols and missing packages of fsspec, too
        raise BadClipError(
            "unreadable",
            f"{name}: the URL cannot be read ({type(error).__name__}: {summary(error)}); check the address, the "
            "network and the protocol, or download the file first.",
        ) from error


def too_large(size: int | None = None, limit: int = MAX_FILE_BYTES) -> str:
    """Text about a file of a size in bytes that exceeds the limit."""
    what = "more than" if size is None else f"{size:,} bytes, more than"
    return f"{what} max_file_bytes={limit:,} bytes; leave it out, or cut it into parts."


def torchcodec_decoder(path: str, name: str) -> Any:
    """Decoder of torchcodec for a local path, whose suffix has no meaning.

    Raises:
        BadClipError: If torchcodec or FFmpeg is missing, or the file is not readable.
    """
    try:
        from torchcodec.decoders import AudioDecoder

        descriptor = os.open(path, os.O_RDONLY)
        try:
            unnamed = f"/proc/self/fd/{descriptor}"
            return AudioDecoder(unnamed if os.path.exists(unnamed) else f"file:{os.path.abspath(path)}")
        finally:
            os.close(descriptor)  # FFmpeg has opened the file itself
    except decode_errors(ImportError) as error:
        # Without FFmpeg's libraries, torchcodec may fail only at its first use.
        if not isinstance(error, (ImportError, OSError)) and "load libtorchcodec" not in str(error):
            raise BadClipError("unreadable", f"{name}: no audio that torchcodec reads: {summary(error)}") from error
        raise BadClipError(
            "missing_codec",
            f"{name}: this format needs torchcodec ({install_hint('codecs')}) and FFmpeg's libraries "
            f"(e.g. apt install ffmpeg): {summary(error)}",
        ) from error


def needs_torchcodec(magic: bytes) -> bool:
    """True for the first bytes of MP4/M4A, Matroska/WebM, ASF/WMA or ADTS AAC."""
    adts = len(magic) > 1 and magic[0] == 0xFF and magic[1] & 0xF6 == 0xF0
    return (
        magic[4:8] == b"ftyp" or magic.startswith((b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")) or adts
    )


def mix_down(waveform: np.ndarray) -> np.ndarray:
    """Mean of the channels, (frames, channels) -> (frames,); as a product, 10 times faster than `mean(1)`."""
    channels = waveform.shape[1]
    if channels == 1:
        return waveform[:, 0]
    with np.errstate(all="ignore"):  # non-finite samples are found later
        return waveform @ np.full(channels, 1 / channels, dtype=np.float32)


__all__ = [
    "MAX_FILE_BYTES",
    "copy_url",
    "describe",
    "fetch",
    "file_of",
    "is_url",
    "mix_down",
    "needs_torchcodec",
    "open_audio",
    "path_of",
    "refused_bytes",
    "scratch_file",
    "too_large",
    "torchcodec_decoder",
]
