"""Errors of audio files: `BadClipError`, and the exceptions of reading and decoding."""

from __future__ import annotations

import asyncio
import re
import sys

from huggingface_hub.errors import HfHubHTTPError

REASONS = ("unreadable", "missing_codec", "truncated", "empty", "non_finite", "silent", "unreadable_shard")
MAX_ERROR_LENGTH = 200
URL_USER = re.compile(r"://[^/@\s'\"]*@")
URL_QUERY = re.compile(r"(://[^?\s'\"]*)\?[^\s'\")]+")
Exceptions = tuple[type[BaseException], ...]


def read_errors(*others: type[BaseException]) -> Exceptions:
    """Exceptions of reading, also over a network, and others.

    Asked for when one was raised: aiohttp, which is slow to import, is there by then if it raised it.
    """
    # The Hub client's HTTPError and fsspec's (aiohttp's) ClientError are no OSErrors; nor is a timeout of fsspec
    # before Python 3.11.
    aiohttp = sys.modules.get("aiohttp")
    of_fsspec = () if aiohttp is None else (aiohttp.ClientError,)
    return (*HfHubHTTPError.__bases__, *of_fsspec, asyncio.TimeoutError, EOFError, *others)


def decode_errors(*others: type[BaseException]) -> Exceptions:
    """Exceptions of reading and decoding, and others; see `read_errors`."""
    # libsndfile raises RuntimeErrors. Bad headers also cause ValueError (NumPy, soxr), TypeError (no format) and, with
    # wrong sizes, MemoryError, OverflowError and ZeroDivisionError.
    return read_errors(RuntimeError, ValueError, TypeError, MemoryError, ArithmeticError, *others)


class BadClipError(ValueError):
    """Error of a row that gives no clip: a reason from `REASONS`, and a message that names the row and the fault.

    The message is without the passwords and queries of URLs.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(reason, mask_secrets(message))
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}: {self.args[1]}"


def mask_secrets(text: str) -> str:
    """Text whose URLs have no user, password or query; signatures of links are in the query."""
    return URL_QUERY.sub(r"\1?***", URL_USER.sub("://***@", text))


def summary(error: BaseException) -> str:
    """Text of an error on one line; for libsndfile, without the address of the file object."""
    text = " ".join(str(getattr(error, "error_string", error)).split())
    return text[:MAX_ERROR_LENGTH] or type(error).__name__


__all__ = ["REASONS", "BadClipError", "Exceptions", "decode_errors", "mask_secrets", "read_errors", "summary"]
