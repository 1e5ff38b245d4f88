"""Messages that C libraries print to standard error by themselves."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _NativeStderr:
    """C library's variable `stderr`, which glibc's manual lets programs set like any other variable.

    Python and its libraries write to the descriptor 2, which does not change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._variable = self._original = self._nowhere = None
        if platform.libc_ver()[0] == "glibc":
            library = ctypes.CDLL(None)
            library.fopen.restype = ctypes.c_void_p
            self._variable = ctypes.c_void_p.in_dll(library, "stderr")
            self._original = self._variable.value
            self._nowhere = library.fopen(os.devnull.encode(), b"w")

    def silence(self) -> None:
        with self._lock:
            self._users += 1
            self._set(self._nowhere)

    def restore(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._set(self._original)

    def restart(self) -> None:
        """In a forked process: the other threads, which would restore it, are gone."""
        self._lock, self._users = threading.Lock(), 0
        self._set(self._original)

    def _set(self, file: int | None) -> None:
        if self._variable is not None and file:
            self._variable.value = file


_STDERR = _NativeStderr()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_STDERR.restart)


@contextmanager
def no_native_messages() -> Iterator[None]:
    """Context in which libmpg123, inside libsndfile, prints no lines about damaged frames. Works with glibc only."""
    _STDERR.silence()
    try:
        yield
    finally:
        _STDERR.restore()


__all__ = ["no_native_messages"]
