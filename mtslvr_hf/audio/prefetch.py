"""Work on items ahead of their use: in threads, in order, with a bound on what waits."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

STOP_SECONDS = 1.0  # to wait for a thread that is in the middle of something when the rest is not wanted


class _Failure(NamedTuple):
    error: BaseException


class _Done:
    """Stands behind an item's last result."""


class ReadAhead:
    """Yields `(number, result)` for every result of `work(number, item)`, items in order and each one's in its order.

    Threads take the items, one thread at a time, and work on several at once. At most twice `limit` results wait to be
    used: beyond `limit`, only the item whose turn it is goes on. So memory is bounded, and no order of events blocks.

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
        self._pulling = threading.Lock()
        self._changed = threading.Condition()  # guards all that follows
        self._queues: dict[int, deque[Any]] = {}
        self._pulled = 0  # items taken so far
        self._turn = 0  # the item that the caller waits for
        self._waiting = 0  # results in all queues
        self._closed = False  # no more items are to be taken

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
            for number in itertools.count():
                while not isinstance(result := self._take(number), _Done):
                    if result is None:
                        return
                    yield number, result
        finally:
            with self._changed:
                self._closed, self._turn = True, -1
                self._changed.notify_all()
            for thread in threads:
                thread.join(STOP_SECONDS)

    def _take(self, number: int) -> Any:
        """Waits for an item's next result; `None` if there is no such item."""
        with self._changed:
            self._turn = number
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queues.get(number) or (self._closed and number >= self._pulled))
            if number not in self._queues:
                return None
            result = self._queues[number].popleft()
            self._waiting -= 1
            if isinstance(result, _Done):
                del self._queues[number]
            self._changed.notify_all()
        if isinstance(result, _Failure):
            raise result.error
        return result

    def _put(self, number: int, result: Any) -> bool:
        """Queues a result when there is room; False if it is not wanted any more."""
        with self._changed:
            queue = self._queues[number]
            self._changed.wait_for(
                lambda: (
                    self._turn < 0 or self._waiting < self.limit or (self._turn == number and len(queue) < self.limit)
                )
            )
            if self._turn < 0:
                return False
            queue.append(result)
            self._waiting += 1
            self._changed.notify_all()
            return True

    def _run(self) -> None:
        while self._work_on_next():
            pass

    def _work_on_next(self) -> bool:
        """Takes an item and works on it; False if there is none. Nothing here keeps an item longer than its work."""
        with self._pulling:
            if self._closed:
                return False
            found, item = self._pull()
        if not found:
            return False
        number, item = item
        try:
            for result in self.work(number, item):
                if not self._put(number, result):
                    return False
        except BaseException as error:  # not swallowed: it is raised in the caller's thread, at the item's turn
            return self._put(number, _Failure(error))
        return self._put(number, _Done())

    def _pull(self) -> tuple[bool, Any]:
        """Takes the next item with its number; an error in the iterator is raised at the turn the item would have."""
        error = item = None
        try:
            item = next(self.items)
        except StopIteration:
            found = False
        except BaseException as failure:  # raised in the caller's thread
            found, error = False, failure
        else:
            found = True
        with self._changed:
            number = self._pulled
            if found or error is not None:
                self._queues[number] = deque()
                self._pulled += 1
            if error is not None:
                self._queues[number].append(_Failure(error))
                self._waiting += 1
            self._closed = self._closed or not found
            self._changed.notify_all()
        return found, (number, item)


__all__ = ["ReadAhead"]
