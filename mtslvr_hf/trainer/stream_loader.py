"""DataLoader of a stream, which replaces workers that die."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from ..data import AudioStream
from ..data.shuffling import Retries
from ..resumable import WorkerSignals

Then = Callable[[Iterator[dict[str, Any]]], Iterable[dict[str, Any]]]
WORKER_SECONDS = 30.0  # of pauses without a batch, until workers that die end the run
ENDING_SECONDS = 30.0  # in which a worker whose connection was lost ends
OF_READING = "in DataLoader worker process"  # in the text of an error that a worker reports


class StreamLoader(DataLoader):
    """DataLoader of an `AudioStream`, which goes on when a worker is killed or crashes.

    All workers are then started anew behind the last batch, so that no clip is lost or repeated. It draws nothing from
    torch's global random generator, whose state would otherwise depend on the number of starts.

    Args:
        stream: The stream.
        num_workers: Number of workers.
        then: Further work on the iterator of the batches, such as `ViewsAhead`.
        options: Other options of DataLoader.

    Raises:
        ChildProcessError: During iteration, if workers die again and again without giving a batch.
    """

    def __init__(self, stream: AudioStream, num_workers: int, then: Then | None = None, **options: Any):
        options["generator"] = torch.Generator()
        super().__init__(stream, batch_size=None, num_workers=num_workers, **options)
        self._then = then
        self._options = options

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # a generator has no len()
        batches = self._batches()
        return batches if self._then is None else iter(self._then(batches))

    def _batches(self) -> Iterator[dict[str, Any]]:
        if not self.num_workers:
            yield from super().__iter__()
            return
        records: dict[int, Mapping[str, Any]] = {}  # the last one of each worker
        retries = Retries(WORKER_SECONDS)
        while True:
            signals, died = WorkerSignals(), ""
            iterator, workers = self._start(records, signals)
            try:
                for batch in iterator:
                    retries.reset()
                    records[batch["stream"]["worker"]] = batch["stream"]
                    yield batch
            except (RuntimeError, OSError, EOFError) as error:
                if not isinstance(error, RuntimeError) and OF_READING not in str(error):
                    # Connections of a killed process are reset, and its sentinel is ready, before it counts as ended.
                    ending = connection.wait([worker.sentinel for worker in workers], timeout=ENDING_SECONDS)
                    for worker in workers:
                        if worker.sentinel in ending:
                            worker.join()
                codes = [worker.exitcode for worker in workers if not worker.is_alive()]
                if not codes:
                    raise  # of reading
                died = f"a DataLoader worker ended ({', '.join(map(_reason, codes))})"
                if not retries.wait(error, died):
                    raise ChildProcessError(
                        f"{died[0].upper()}{died[1:]} again and again without giving a batch. If the system ended it "
                        "for want of memory, give fewer --dataloader_num_workers or a smaller --shuffle_buffer."
                    ) from error
            if not died:
                return
            signals.end()
            del iterator  # ends the other workers

    def _start(
        self, records: Mapping[int, Mapping[str, Any]], signals: WorkerSignals
    ) -> tuple[Iterator[dict[str, Any]], list[multiprocessing.process.BaseProcess]]:
        """Batches behind those of the records, and the workers that make them."""
        stream = cast(AudioStream, self.dataset)
        if records:
            stream = copy.copy(stream)
            stream.state = stream.state_after(records.values())
        loader = DataLoader(
            stream, batch_size=None, num_workers=self.num_workers, worker_init_fn=signals, **self._options
        )
        others = set(multiprocessing.active_children())
        with _handler_kept():
            iterator = iter(loader)
        return iterator, [child for child in multiprocessing.active_children() if child not in others]


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Context that restores the handler of SIGCHLD, without torch's, which another DataLoader may have set before.

    That would raise the error of a dead worker anywhere, also in the middle of a step. Without it, the error comes
    when the next batch is asked for.
    """
    number = getattr(signal, "SIGCHLD", None) if threading.current_thread() is threading.main_thread() else None
    handler: Any = None if number is None else signal.getsignal(number)
    if getattr(handler, "__module__", None) == signal_handling.__name__:
        handler = inspect.getclosurevars(handler).nonlocals.get("previous_handler") or signal.SIG_DFL
    try:
        yield
    finally:
        if number is not None and handler is not None:
            signal.signal(number, handler)


def _reason(code: int | None) -> str:
    """Exit code of a process in words."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


__all__ = ["StreamLoader"]
