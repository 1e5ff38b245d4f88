"""Writers of shards, which process the rows of partitions and list bad ones."""

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
from ..data.sources import shard_errors
from .folder import ShardFolder, ShardRecord
from .partitions import Partition, SourceRow

logger = logging.getLogger(__name__)


class Result(Protocol):
    """Result of one row; writers have results with more fields."""

    @property
    def index(self) -> int: ...  # of the row among those of `ShardWriter.results`

    @property
    def error(self) -> BadClipError | None: ...


ResultT = TypeVar("ResultT", bound=Result)


class ShardWriter(ABC, Generic[ResultT]):
    """Writer of partitions to shards.

    Args:
        folder: Folder of the shards.
        features: Columns of the shards.
        rows_per_shard: Largest number of the source's rows in a shard.
        finish: Writes the manifest from the result of `ShardFolder.finish`; called once, in one process.
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
        """Yields a result for the audio of each row, in order."""

    @abstractmethod
    def totals(self, results: Sequence[ResultT]) -> dict[str, float]:
        """Sums over good rows."""

    @abstractmethod
    def table(self, good: Sequence[tuple[SourceRow, ResultT]]) -> pa.Table:
        """Row group of these rows."""

    def group_is_full(self, good: Sequence[tuple[SourceRow, ResultT]]) -> bool:
        """True if these rows fill a row group; by default, a shard is one row group."""
        return False

    def write(self, number: int, partition: Partition, bar: tqdm) -> int:
        """Writes the missing shards of a partition and returns their number; `bar` counts rows."""
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
        taken: deque[SourceRow] = deque()  # rows without a result so far
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
        if good:  # `datasets` can read a file without row groups, but no row group without rows
            file.write_table(self.table(good))
        last = rows.at_end()
        if rows.failure is not None:
            logger.warning("Partition %d of the source: %s", number, rows.failure)
        return ShardRecord(number, shard, inputs, last, count, dict(totals), errors, rows.failure)


class _PartitionRows:
    """Rows of a partition, shard after shard; they are read again only to skip a finished shard."""

    def __init__(self, partition: Partition):
        self.partition = partition
        self.failure: str | None = None  # read error that ended the rows
        self._rows: Iterator[SourceRow] = iter(())
        self._position = -1  # of the next row
        self._ahead: list[SourceRow] = []

    def audio(self, start: int, count: int, taken: deque[SourceRow]) -> Iterator[Any]:
        """Yields the audio of up to `count` rows; appends the rows, without audio bytes, to `taken`."""
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
        """True if there are no more rows; reads one to test it."""
        row = self._read()
        self._ahead = [] if row is None else [row]
        return row is None

    def _read(self) -> SourceRow | None:
        if self._ahead:
            return self._ahead.pop()
        try:
            return next(self._rows, None)
        except shard_errors() as error:
            self.failure = f"cannot be read on after row {self._position}: {type(error).__name__}: {summary(error)}"
            return None


def _error(partition: int, number: int, row: SourceRow, index: int, error: BadClipError) -> dict[str, Any]:
    """Line of errors.jsonl; the message names the row by its id, not by a path of this machine."""
    message, path = error.args[1], (row.audio or {}).get("path")
    for name in (f"Clip {index} ({path})", f"Clip {index}", path):
        message = message.replace(name, row.id, 1) if name and message.startswith(name) else message
    return {"id": row.id, "partition": partition, "row": number, "reason": error.reason, "message": message}


__all__ = ["Result", "ShardWriter"]
