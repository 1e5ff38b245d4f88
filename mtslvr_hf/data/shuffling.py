"""Shuffled reader of a data set's undecoded rows, which can start at any row."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import datasets
import fsspec.asyn
import numpy as np

from ..audio.hashing import hash_integers
from ..audio.prefetch import ReadAhead
from .sources import shard_errors

logger = logging.getLogger(__name__)

MAP_STYLE_SHARDS = 64
LATER_STATUS = (408, 429)  # of HTTP: timeout, too many requests
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds


class Row(NamedTuple):
    """One undecoded row, or the error that ended a shard."""

    place: int  # of the shard among the reader's shards of this epoch
    index: int  # type: ignore[assignment]  # hides the method of tuples; index of the row in that shard
    audio: Mapping[str, Any] | None
    error: str | None
    lost: int = 1  # rows that an error costs this consumer


class Cursor(NamedTuple):
    """Position in one epoch of a reader: the first row of a shuffle block, and the number of its rows used."""

    place: int = 0
    index: int = 0  # type: ignore[assignment]  # hides the method of tuples
    used: int = 0


class ShuffledReader:
    """Reader of one consumer's part of a data set, in a new order in every epoch.

    Shards are assigned to the consumers (DataLoader workers of all processes): together they read each row once per
    epoch. With more consumers than shards, several read the same shard and keep every n-th row each. The assignment
    rotates: after C epochs, each of C consumers has read every shard.

    Rows are shuffled in blocks. A block is yielded in random order while the next one is read. The order of a block
    depends only on its first row, so a reader can start at any row after reading at most two blocks; the shuffle
    buffer of `datasets` would need all rows since the start of the epoch.

    Args:
        dataset: Stream as `load_audio` returns it.
        seed: Seed of all epochs' orders.
        block_rows: Rows of a block, all in memory (1.3 MB each in AudioSet); 1 keeps the order within shards.
        consumer, consumers: Index of this consumer and number of consumers.
        read_ahead: Rows that a thread reads ahead of the block while others are decoded; 0 uses no thread.
        retry_seconds: Time for which a shard that cannot be read is tried again, with growing pauses, since its last
            row; then its other rows are lost. A missing file is not tried again.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        seed: int,
        block_rows: int,
        consumer: int = 0,
        consumers: int = 1,
        read_ahead: int = 0,
        retry_seconds: float = 0.0,
    ):
        self.dataset = dataset
        self.seed = seed
        self.block_rows = block_rows
        self.consumer = consumer
        self.consumers = consumers
        self.read_ahead = read_ahead
        self.retry_seconds = retry_seconds
        self._rows_of: dict[int, int] = {}  # rows of the shards that were read to their end

    def read(self, epoch: int, start: Cursor) -> Iterator[tuple[Row, Cursor]]:
        """Yields the rows of an epoch from `start` on, each with the cursor after it."""
        assignment = self._assignment(epoch)
        rows = self._rows(assignment, start)
        if self.read_ahead:
            ahead = ReadAhead([rows], lambda _, rows: rows, num_workers=1, limit=self.read_ahead)
            rows = (row for _, row in ahead)
        block: list[Any] = list(islice(rows, self.block_rows))
        used = start.used
        while block:
            place, index = block[0].place, block[0].index
            order = _generator(self.seed, epoch, assignment.shards[place], index).permutation(len(block))
            following: list[Row] = []
            for n, i in enumerate(order, 1):
                row, block[i] = block[i], None  # frees the memory of used rows
                if n > used:
                    yield row, Cursor(place, index, n)
                following += islice(rows, 1)
            block, used = following, 0

    def _assignment(self, epoch: int) -> _ShardAssignment:
        """Shards of this consumer in an epoch. The assignment is redrawn every C epochs, the order in each epoch."""
        total = self.dataset.num_shards
        shards = _generator(self.seed, epoch // self.consumers).permutation(total)
        turn = (self.consumer + epoch) % self.consumers
        mine = _generator(self.seed, epoch, turn).permutation(shards[turn % total :: self.consumers])
        return _ShardAssignment(mine.tolist(), turn // total, len(range(turn % total, self.consumers, total)))

    def _rows(self, assignment: _ShardAssignment, start: Cursor) -> Iterator[Row]:
        """Yields the rows of the assigned shards in order, from `start` on."""
        fsspec.asyn.reset_lock()  # a lock that was held while the worker was forked would never be released
        for place in range(start.place, len(assignment.shards)):
            yield from self._shard(assignment, place, start.index if place == start.place else 0)

    def _shard(self, assignment: _ShardAssignment, place: int, index: int) -> Iterator[Row]:
        """Yields a shard's rows from `index` on; a read error becomes its last row.

        `iter(batch_size=...)` is the only iteration that `datasets` does not split by DataLoader worker.
        """
        shard, retries = assignment.shards[place], Retries(self.retry_seconds)
        while True:
            try:
                rows = self.dataset.shard(num_shards=self.dataset.num_shards, index=shard)
                for batch in (rows.skip(index) if index else rows).iter(batch_size=1):
                    if index % assignment.stride == assignment.offset:
                        yield Row(place, index, batch["audio"][0], None)
                    index += 1
                    retries.reset()
            except shard_errors() as error:
                text = f"shard {shard} at row {index}: {type(error).__name__}: {error}"
                if retries.wait(error, text):
                    continue
                yield Row(place, index, None, text, self._lost(shard, index, assignment.stride))
            else:
                self._rows_of[shard] = index
            return

    def _lost(self, shard: int, index: int, stride: int) -> int:
        """Rows of a shard from `index` on that this consumer does not get.

        A shard that was never read to its end counts as long as the others in the mean.
        """
        known = self._rows_of.values()
        rows = self._rows_of.get(shard, round(sum(known) / len(known)) if known else 0)
        return max(1, round((rows - index) / stride))


class Retries:
    """Pauses between tries to read something over a network, each twice as long as the one before.

    Args:
        seconds: Longest time of all pauses since the last success.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Notes a success."""
        self._waited, self._pause = 0.0, FIRST_PAUSE

    def wait(self, error: BaseException, text: str) -> bool:
        """Waits and returns True if it should be tried again after an error, which `text` describes."""
        if _is_final(error) or self._waited >= self.seconds:
            return False
        pause = min(self._pause, LONGEST_PAUSE, self.seconds - self._waited)
        logger.warning("%s; trying again in %.0f s (waited %.0f of %.0f s).", text, pause, self._waited, self.seconds)
        time.sleep(pause)
        self._waited, self._pause = self._waited + pause, 2 * self._pause
        return True


def _is_final(error: BaseException) -> bool:
    """True for errors that another try does not mend: a missing or forbidden file."""
    status = getattr(error, "status", None)  # of aiohttp
    refused = isinstance(status, int) and 400 <= status < 500 and status not in LATER_STATUS
    return refused or isinstance(error, (FileNotFoundError, PermissionError))


class _ShardAssignment(NamedTuple):
    """Shards in reading order; of each, every `stride`-th row from `offset` on is read."""

    shards: list[int]
    offset: int
    stride: int


def _generator(*key: int) -> np.random.Generator:
    """Random generator of a key. (NumPy's seeding does not distinguish the lists [1] and [1, 0].)"""
    return np.random.default_rng(hash_integers(*key))


def as_iterable(dataset: datasets.IterableDataset | datasets.Dataset, seed: int = 0) -> datasets.IterableDataset:
    """Stream of up to 64 shards over a map-style data set in a fixed random order; a stream is returned unchanged.

    Raises:
        ValueError: If the data set is empty.
    """
    if isinstance(dataset, datasets.IterableDataset):
        return dataset
    if len(dataset) == 0:
        raise ValueError("The data set has no rows; expected at least one.")
    shuffled = dataset.shuffle(seed=seed, keep_in_memory=True)
    return shuffled.to_iterable_dataset(num_shards=min(len(dataset), MAP_STYLE_SHARDS))


def usable_workers(dataset: datasets.IterableDataset | datasets.Dataset, asked: int, world_size: int = 1) -> int:
    """Number of DataLoader workers, at most `asked`, so that each has a shard of its own.

    More workers are possible, but would read the same shards to share their rows.
    """
    shards = (
        dataset.num_shards if isinstance(dataset, datasets.IterableDataset) else min(len(dataset), MAP_STYLE_SHARDS)
    )
    return min(asked, max(1, shards // world_size))


__all__ = ["Cursor", "Retries", "Row", "ShuffledReader", "as_iterable", "usable_workers"]
