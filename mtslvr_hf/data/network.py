"""Time limits of reading data sets over HTTP."""

from __future__ import annotations

from typing import Any

import aiohttp
import datasets
import fsspec.config

MOST_RETRIES = 2  # of datasets' own, within a try of the stream


class HttpClient:
    """Maker of fsspec's HTTP sessions, which give up after some silence of the server instead of after five minutes.

    Args:
        seconds: Longest time without a connection or without data.
    """

    def __init__(self, seconds: float):
        self.timeout = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)

    async def __call__(self, **options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(**{"timeout": self.timeout, **options})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.timeout!r})"  # fsspec keeps a file system for each text of its options


def limit_silence(seconds: float) -> None:
    """Has reading over HTTP in this process and its forks give up after so many seconds without data.

    What comes slowly is read to its end. `datasets` tries again only twice, not twenty times.
    """
    fsspec.config.conf.setdefault("http", {})["get_client"] = HttpClient(seconds)
    datasets.config.STREAMING_READ_MAX_RETRIES = MOST_RETRIES


__all__ = ["HttpClient", "limit_silence"]
