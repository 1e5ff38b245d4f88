"""Work on items ahead of their use: in threads, in order, with a bound on what waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

STOP_SECONDS = 1.0  # to wait for a thread that is in the middle of something when the rest is not wanted


class ReadAhead:
    """Yields `(number, result)` for every result of `work(number, item)`, items in order and each one's in its order.

    Threads take the items, one thread at a time, and work on several at once. At most twice `limit` results wait to be
    used: beyond `limit`, only the item whose turn it is goes on. So memory is bounded, and no order of events blocks.
    An error is raised at its item's turn. The threads are daemons, unlike those of an executor: no read that hangs
    keeps the interpreter from ending.

    Args:
        items: Where the items come from; it is iterated in the threads.
        work: Yields an item's results.
        num_workers: Number of threads; 0 works in the caller's.
        limit: Number of results.
    """

    def __init__(
        self,
        items: Iterable[Any],
        work: Callable[[int, Any], Iterator[Any]],
        num_workers: int,
        limit: int,
    ):
        self.items = iter(items)
        self.work = work
        self.num_workers = num_workers
        self.limit = limit
        self._taking = threading.Lock()
        self._changed = threading.Condition()  # guards all that follows
        self._queues: dict[int, deque[tuple[Any, BaseException | bool]]] = {}  # of results, and whether that is all
        self._taken = 0  # items
        self._turn = 0  # the item whose results are used; below 0, no more are
        self._waiting = 0  # results in all queues
        self._ended = False  # no more items are to be taken

    def __iter__(self) -> Generator[tuple[int, Any], None, None]:
        if self.num_workers == 0:
            for number, item in enumerate(self.items):
                for result in self.work(number, item):
                    yield number, result
            return
        threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.num_workers)]
        for thread in threads:
            thread.start()
        try:
            while (entry := self._next()) is not None:
                result, end = entry
                if isinstance(end, BaseException):
                    raise end
                if not end:
                    yield self._turn, result
        finally:
            with self._changed:
                self._ended, self._turn = True, -1
                self._changed.notify_all()
            for thread in threads:
                thread.join(STOP_SECONDS)

    def _next(self) -> tuple[Any, BaseException | bool] | None:
        """Waits for the next entry of the item whose turn it is; None behind the last item."""
        with self._changed:
            self._changed.wait_for(lambda: self._queues.get(self._turn) or (self._ended and self._turn >= self._taken))
            if self._turn >= self._taken:
                return None
            entry = self._queues[self._turn].popleft()
            self._waiting -= 1
            if entry[1]:
                del self._queues[self._turn]
                self._turn += 1
            self._changed.notify_all()
            return entry

    def _put(self, number: int, result: Any = None, end: BaseException | bool = False) -> bool:
        """Queues a result when there is room; False if it is not wanted any more."""
        with self._changed:
            queue = self._queues[number]
            self._changed.wait_for(
                lambda: (
                    self._turn < 0 or self._waiting < self.limit or (self._turn == number and len(queue) < self.limit)
                )
            )
            queue.append((result, end))
            self._waiting += 1
            self._changed.notify_all()
            return self._turn >= 0

    def _run(self) -> None:
        while self._work_on_next():
            pass

    def _work_on_next(self) -> bool:
        """Takes an item and works on it; False if there is none. Nothing here keeps an item longer than its work."""
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
        try:
            for result in self.work(number, item):
                if not self._put(number, result):
                    return False
        except BaseException as error:  # raised in the caller's thread, at the item's turn
            return self._put(number, end=error)
        return self._put(number, end=True)


__all__ = ["ReadAhead"]
