"""Read-ahead of items in threads, in order, with bounded memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

STOP_SECONDS = 1.0  # longest wait for busy threads when no more results are needed


class ReadAhead:
    """Iterable of `(number, result)` for every result of `work(number, item)`, in the order of items and results.

    Threads take items one at a time and work on several at once. At most twice `limit` results wait: beyond `limit`,
    only the item that is read next continues, so that memory is bounded without deadlocks. An error is raised in the
    place of its item. Unlike an executor's, the threads are daemons: a blocked read does not keep the program alive.

    Args:
        items: Iterated in the threads.
        work: Yields an item's results.
        num_workers: Number of threads; 0 works in the caller's thread.
        limit: Number of results.
        prepare: Called in each thread before it works.
    """

    def __init__(
        self,
        items: Iterable[Any],
        work: Callable[[int, Any], Iterator[Any]],
        num_workers: int,
        limit: int,
        prepare: Callable[[], object] | None = None,
    ):
        self.items = iter(items)
        self.work = work
        self.num_workers = num_workers
        self.limit = limit
        self.prepare = prepare
        self._threads: list[threading.Thread] = []
        self._prepared = threading.Semaphore(0)
        self._taking = threading.Lock()
        self._changed = threading.Condition()  # guards the fields below
        self._queues: dict[int, deque[tuple[Any, BaseException | bool]]] = {}  # by item: results, and the end or error
        self._taken = 0  # number of items
        self._turn = 0  # item whose results are read; -1: none any more
        self._waiting = 0  # results in all queues
        self._ended = False  # no more items are taken

    def __iter__(self) -> Generator[tuple[int, Any], None, None]:
        if self.num_workers == 0:
            for number, item in enumerate(self.items):
                for result in self.work(number, item):
                    yield number, result
            return
        self.start()
        try:
            while (entry := self._next()) is not None:
                result, end = entry
                if isinstance(end, BaseException):
                    raise end
                if not end:
                    yield self._turn, result
        finally:
            self.stop()
            self.join()

    def start(self) -> None:
        """Starts the threads, and returns when all are prepared; the iteration does it if nothing else did."""
        if self._threads or self.stopped:
            return
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.num_workers)]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._prepared.acquire()

    def stop(self) -> None:
        """Ends the iteration, also in another thread that waits for a result, and lets the threads end."""
        with self._changed:
            self._ended, self._turn = True, -1
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for the threads to end, but not for one that is blocked."""
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def stopped(self) -> bool:
        """True if no more results are needed."""
        return self._turn < 0

    def _next(self) -> tuple[Any, BaseException | bool] | None:
        """Waits for the next entry of the item that is read; None after the last item, or once it is stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.stopped or self._queues.get(self._turn) or (self._ended and self._turn >= self._taken)
            )
            if self.stopped or self._turn >= self._taken:
                return None
            entry = self._queues[self._turn].popleft()
            self._waiting -= 1
            if entry[1]:
                del self._queues[self._turn]
                self._turn += 1
            self._changed.notify_all()
            return entry

    def _put(self, number: int, result: Any = None, end: BaseException | bool = False) -> bool:
        """Queues a result when there is room; False if no more results are needed."""
        with self._changed:
            queue = self._queues[number]
            self._changed.wait_for(
                lambda: (
                    self.stopped or self._waiting < self.limit or (self._turn == number and len(queue) < self.limit)
                )
            )
            queue.append((result, end))
            self._waiting += 1
            self._changed.notify_all()
            return not self.stopped

    def _run(self) -> None:
        try:
            if self.prepare is not None:
                self.prepare()
        finally:
            self._prepared.release()
        while self._work_on_next():
            pass

    def _work_on_next(self) -> bool:
        """Takes an item and works on it; False if there is none. The item is released after its work."""
        with self._taking:
            if self._ended:
                return False
            item: Any = None
            end: BaseException | bool = False
            try:
                item = next(self.items)
            except StopIteration:
                end = True
            except BaseException as error:  # raised in the caller's thread
                end = error
            with self._changed:
                number = self._taken
                self._ended = self._ended or bool(end)
                if end is not True:
                    self._queues[number] = deque()
                    self._taken += 1
                self._changed.notify_all()
        if end:
            return end is not True and self._put(number, end=end)
        if self.stopped:  # while it waited for the item
            return False
        try:
            for result in self.work(number, item):
                if not self._put(number, result):
                    return False
        except BaseException as error:  # raised in the caller's thread
            return self._put(number, end=error)
        return self._put(number, end=True)


__all__ = ["ReadAhead"]
