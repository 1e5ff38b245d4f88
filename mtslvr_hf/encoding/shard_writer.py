"""Units of work to shards: rows are embedded as they are read, bad ones are listed.

Shapes: R rows of a shard, D embedding.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.decoding import _summary
from ..data.reading import SHARD_ERRORS
from .pipeline import Encoded, encode_items
from .shards import ShardFolder, ShardRecord
from .units import SourceRow, Unit

logger = logging.getLogger(__name__)

OWN_COLUMNS = ("id", "embedding", "duration", "windows")


class ShardWriter:
    """Embeds units of work, part by part."""

    def __init__(
        self,
        model: PreTrainedModel,
        folder: ShardFolder,
        features: datasets.Features,
        rows_per_shard: int,
        options: dict[str, Any],
        bar: tqdm,
    ):
        self.model = model
        self.folder = folder
        self.features = features
        self.rows_per_shard = rows_per_shard
        self.options = options  # of encode_items
        self.bar = bar
        self.computed = 0

    def embed(self, number: int, unit: Unit) -> None:
        """Makes what is missing of a unit's shards."""
        inputs, rows = unit.inputs(), _UnitRows(unit)
        for part in itertools.count():
            record = self.folder.finished(number, part, inputs)
            if record is None:
                record = self._embed_part(number, part, inputs, rows)
                self.computed += 1
            else:
                self.bar.update(record.rows + len(record.errors))
            if record.last:
                return

    def _embed_part(self, number: int, part: int, inputs: str, rows: _UnitRows) -> ShardRecord:
        start = part * self.rows_per_shard
        taken: deque[SourceRow] = deque()  # those that encode_items was given and did not give back
        good: list[tuple[SourceRow, Encoded]] = []
        errors = []
        with closing(
            encode_items(self.model, rows.audio(start, self.rows_per_shard, taken), **self.options)
        ) as results:
            for result in results:
                row = taken.popleft()
                if result.error is None:
                    good.append((row, result))
                else:
                    errors.append(_error(number, start + result.index, row, result))
                self.bar.update()
        last = rows.at_end()
        if rows.failure is not None:
            logger.warning("unit %d of the source: %s", number, rows.failure)
        record = ShardRecord(
            unit=number,
            part=part,
            inputs=inputs,
            last=last,
            rows=len(good),
            seconds=sum(result.seconds for _, result in good),
            windows=sum(result.windows for _, result in good),
            errors=errors,
            failure=rows.failure,
        )
        return self.folder.write(_table(self.features, good), record)


class _UnitRows:
    """A unit's rows, part after part; they are read anew only to leave a finished part out.

    Attributes:
        failure: Why the rows could not be read to their end, once that has happened.
    """

    def __init__(self, unit: Unit):
        self.unit = unit
        self.failure: str | None = None
        self._rows: Iterator[SourceRow] = iter(())
        self._position = -1  # of the next row
        self._ahead: list[SourceRow] = []

    def audio(self, start: int, count: int, taken: deque[SourceRow]) -> Iterator[Any]:
        """Yields the audio of up to `count` rows; the rows without their audio's bytes go to `taken`."""
        if start != self._position:
            self._rows, self._position, self._ahead = self.unit.rows(start), start, []
        for _ in range(count):
            row = self._read()
            if row is None:
                return
            self._position += 1
            taken.append(row._replace(audio={"path": (row.audio or {}).get("path")}))
            yield row.audio

    def at_end(self) -> bool:
        """Whether there are no more rows, which takes reading one to find out."""
        row = self._read()
        self._ahead = [] if row is None else [row]
        return row is None

    def _read(self) -> SourceRow | None:
        if self._ahead:
            return self._ahead.pop()
        try:
            return next(self._rows, None)
        except SHARD_ERRORS as error:
            self.failure = f"cannot be read on after row {self._position}: {type(error).__name__}: {_summary(error)}"
            return None


def _error(unit: int, number: int, row: SourceRow, result: Encoded) -> dict[str, Any]:
    """A line of errors.jsonl. The message names the row as the output does, not by a place or path of this machine."""
    message, path = result.error.args[1], row.audio["path"]
    for name in (f"Clip {result.index} ({path})", f"Clip {result.index}", path):
        message = message.replace(name, row.id, 1) if name and message.startswith(name) else message
    return {"id": row.id, "unit": unit, "row": number, "reason": result.error.reason, "message": message}


def table_features(copied: datasets.Features, size: int) -> datasets.Features:
    """A shard's columns: the own ones, and behind them the copied ones."""
    own = {
        "id": datasets.Value("string"),
        "embedding": datasets.List(datasets.Value("float32"), length=size),
        "duration": datasets.Value("float64"),
        "windows": datasets.Value("int32"),
    }
    return datasets.Features({**own, **copied})


def _table(features: datasets.Features, good: Sequence[tuple[SourceRow, Encoded]]) -> pa.Table:
    schema, size = features.arrow_schema, features["embedding"].length
    embeddings = (
        np.stack([result.embedding.numpy() for _, result in good]) if good else np.zeros((0, size), np.float32)
    )
    values = {
        "id": [row.id for row, _ in good],
        "duration": [result.seconds for _, result in good],
        "windows": [result.windows for _, result in good],
    }
    for name in features:
        if name not in OWN_COLUMNS:
            values[name] = [row.columns[name] for row, _ in good]
    arrays = {name: pa.array(column, schema.field(name).type) for name, column in values.items()}
    flat = pa.array(embeddings.ravel())  # (R x D,)
    arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
    return pa.Table.from_arrays([arrays[name] for name in features], schema=schema)


__all__ = ["OWN_COLUMNS", "ShardWriter", "table_features"]
