"""Errors of audio files: `BadClipError`, and the exceptions that reading and decoding can raise."""

from __future__ import annotations

import asyncio

import aiohttp
from huggingface_hub.errors import HfHubHTTPError

REASONS = ("unreadable", "missing_codec", "truncated", "empty", "non_finite", "silent", "unreadable_shard")
MAX_ERROR_LENGTH = 200
Exceptions = tuple[type[BaseException], ...]
# What reading a file can raise, over a network too. Neither the HTTPError of the Hub's client nor the ClientError of
# fsspec's (aiohttp) is an OSError, nor is a timeout of fsspec before Python 3.11.
READ_ERRORS: Exceptions = (*HfHubHTTPError.__bases__, aiohttp.ClientError, asyncio.TimeoutError, EOFError)
# libsndfile's errors are RuntimeErrors; bad headers also give ValueError (NumPy, soxr), TypeError (no format) and,
# with absurd sizes, MemoryError, OverflowError and ZeroDivisionError.
DECODE_ERRORS: Exceptions = (*READ_ERRORS, RuntimeError, ValueError, TypeError, MemoryError, ArithmeticError)


class BadClipError(ValueError):
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


def summary(error: BaseException) -> str:
    """An error's text on one line; libsndfile's without the file object's address."""
    text = " ".join(str(getattr(error, "error_string", error)).split())
    return text[:MAX_ERROR_LENGTH] or type(error).__name__


__all__ = ["DECODE_ERRORS", "READ_ERRORS", "REASONS", "BadClipError", "Exceptions", "summary"]
