"""Shard writers: partitions to shards; rows are processed as they are read, bad ones are listed."""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..audio.errors import BadClipError, summary
from ..data.sources import SHARD_ERRORS
from .folder import ShardFolder, ShardRecord
from .partitions import Partition, SourceRow

logger = logging.getLogger(__name__)


class Result(Protocol):
    """Result of one row; a `ShardWriter` may add to it."""

    @property
    def index(self) -> int: ...  # the row's place among those given

    @property
    def error(self) -> BadClipError | None: ...


ResultT = TypeVar("ResultT", bound=Result)


class ShardWriter(ABC, Generic[ResultT]):
    """Writer of partitions to shards.

    Args:
        folder: The folder of the shards.
        features: Their columns.
        rows_per_shard: Most rows of the source in a shard.
        finish: Writes the manifest, given the facts that `ShardFolder.finish` returns; called once, in one process.
    """

    def __init__(
        self,
        folder: ShardFolder,
        features: datasets.Features,
        rows_per_shard: int,
        finish: Callable[[dict[str, Any]], None],
    ):
        self.folder = folder
        self.features = features
        self.rows_per_shard = rows_per_shard
        self.finish = finish

    @abstractmethod
    def results(self, audio: Iterator[Any]) -> Generator[ResultT, None, None]:
        """Yields a result for each row's audio, in order; a generator, so that it can be closed."""

    @abstractmethod
    def totals(self, results: Sequence[ResultT]) -> dict[str, float]:
        """Sums over good rows."""

    @abstractmethod
    def table(self, good: Sequence[tuple[SourceRow, ResultT]]) -> pa.Table:
        """Makes a row group."""

    def group_is_full(self, good: Sequence[tuple[SourceRow, ResultT]]) -> bool:
        """True if these rows make a row group; a shard is one row group unless overridden."""
        return False

    def write(self, number: int, partition: Partition, bar: tqdm) -> int:
        """Makes what is missing of a partition's shards; returns how many that were. `bar` counts rows."""
        inputs, rows, computed = partition.inputs(), _PartitionRows(partition), 0
        for shard in itertools.count():
            record = self.folder.finished(number, shard, inputs)
            if record is None:
                fill = partial(self._fill, number, shard, inputs, rows, bar)
                record = self.folder.write(number, shard, self.features.arrow_schema, fill)
                computed += 1
            else:
                bar.update(record.rows + len(record.errors))
            if record.last:
                break
        return computed

    def _fill(
        self, number: int, shard: int, inputs: str, rows: _PartitionRows, bar: tqdm, file: pq.ParquetWriter
    ) -> ShardRecord:
        start, count = shard * self.rows_per_shard, 0
        taken: deque[SourceRow] = deque()  # those whose results are not there yet
        good: list[tuple[SourceRow, ResultT]] = []
        errors, totals = [], Counter(self.totals([]))
        with closing(self.results(rows.audio(start, self.rows_per_shard, taken))) as results:
            for result in results:
                row = taken.popleft()
                if result.error is None:
                    good.append((row, result))
                    count += 1
                    totals.update(self.totals([result]))
                else:
                    errors.append(_error(number, start + result.index, row, result.index, result.error))
                if self.group_is_full(good):
                    file.write_table(self.table(good))
                    good = []
                bar.update()
        if good:  # a row group without rows is an error in `datasets`, a file without row groups is none
            file.write_table(self.table(good))
        last = rows.at_end()
        if rows.failure is not None:
            logger.warning("partition %d of the source: %s", number, rows.failure)
        return ShardRecord(number, shard, inputs, last, count, dict(totals), errors, rows.failure)


class _PartitionRows:
    """A partition's rows, shard after shard; they are read anew only to leave a finished shard out.

    Attributes:
        failure: Why the rows could not be read to their end, once that has happened.
    """

    def __init__(self, partition: Partition):
        self.partition = partition
        self.failure: str | None = None
        self._rows: Iterator[SourceRow] = iter(())
        self._position = -1  # of the next row
        self._ahead: list[SourceRow] = []

    def audio(self, start: int, count: int, taken: deque[SourceRow]) -> Iterator[Any]:
        """Yields the audio of up to `count` rows; the rows without their audio's bytes go to `taken`."""
        if start != self._position:
            self._rows, self._position, self._ahead = self.partition.rows(start), start, []
        for _ in range(count):
            row = self._read()
            if row is None:
                return
            self._position += 1
            taken.append(row._replace(audio={"path": (row.audio or {}).get("path")}))
            yield row.audio

    def at_end(self) -> bool:
        """True if there are no more rows. It reads one to find out."""
        row = self._read()
        self._ahead = [] if row is None else [row]
        return row is None

    def _read(self) -> SourceRow | None:
        if self._ahead:
            return self._ahead.pop()
        try:
            return next(self._rows, None)
        except SHARD_ERRORS as error:
            self.failure = f"cannot be read on after row {self._position}: {type(error).__name__}: {summary(error)}"
            return None


def _error(partition: int, number: int, row: SourceRow, index: int, error: BadClipError) -> dict[str, Any]:
    """A line of errors.jsonl. The message names the row as the output does, not by a place or path of this machine."""
    message, path = error.args[1], (row.audio or {}).get("path")
    for name in (f"Clip {index} ({path})", f"Clip {index}", path):
        message = message.replace(name, row.id, 1) if name and message.startswith(name) else message
    return {"id": row.id, "partition": partition, "row": number, "reason": error.reason, "message": message}


__all__ = ["Result", "ShardWriter"]
