"""Signals that stop a run: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (batch schedulers)."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
WORKER_SECONDS = 30.0  # that a DataLoader worker runs on after SIGTERM, so that the run can save a checkpoint


class StopRequestedError(BaseException):
    """Signal that came while the run waits for data or evaluates; its state is that of the end of a step."""


class RunStopped(SystemExit):
    """End of a program by a signal: exit status 0, after Ctrl-C 130."""

    def __init__(self, number: int):
        super().__init__(130 if number == signal.SIGINT else 0)
        self.name = signal.Signals(number).name


class StopSignals:
    """Context in which the first signal ends the run in good order and the second one ends the process at once.

    Outside of `deferred`, the first signal raises RunStopped. In a thread other than the main one, signals keep their
    meaning.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = self._interruptible = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Context in which a signal is stored in `requested`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context inside of `deferred` in which a signal, also an earlier one, raises StopRequestedError."""
        if self.requested is not None:
            raise StopRequestedError
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child: its parent decides
            return
        name = signal.Signals(number).name
        if self.requested is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._process, number)
            return
        self.requested = number
        if not self._deferred:
            sys.stderr.write(f"\nStopped by {name}. Give the same command again to go on.\n")
            raise RunStopped(number)
        sys.stderr.write(f"\n{name}: a checkpoint is saved, then the run ends. A second signal ends it at once.\n")
        if self._interruptible:
            self._interruptible = False
            raise StopRequestedError


class WorkerSignals:
    """Initializer of DataLoader workers: signals to a whole process group do not end them before the run does.

    A worker ignores SIGINT and SIGUSR1. It ends 30 s after SIGTERM, at once at a second one, and at once if this
    process is ending.

    Args:
        then: Further initializer of a worker.
    """

    def __init__(self, then: Callable[[int], None] | None = None):
        self._then = then
        self._ending = multiprocessing.RawValue("b", 0)  # shared with the workers
        atexit.register(self.end)  # before multiprocessing ends them

    def __call__(self, worker: int) -> None:
        for number in SIGNALS:
            signal.signal(number, self._end_later if number == signal.SIGTERM else signal.SIG_IGN)
        if self._then is not None:
            self._then(worker)

    def end(self) -> None:
        """Has workers end at once at SIGTERM, because the run ends or replaces them."""
        self._ending.value = 1

    def _end_later(self, number: int, frame: FrameType | None) -> None:
        if self._ending.value:
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        timer = threading.Timer(WORKER_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()


__all__ = ["RunStopped", "StopRequestedError", "StopSignals", "WorkerSignals"]
