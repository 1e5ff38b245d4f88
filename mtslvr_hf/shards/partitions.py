"""Partitions of a source for `mtslvr embed` and `cache`, with the rows of each in a fixed order."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from ..audio.errors import mask_secrets
from ..data.encoded import folder_roots
from ..data.folders import FolderLayout, readable_name
from ..data.local import LocalSource, local_path, look_into
from ..data.metadata import FILE_COLUMN
from ..data.sources import OpenedStream, check_dataset, find_audio_column, open_stream, open_tars, undecoded

FOLDER_COLUMNS = (FILE_COLUMN, "label")
PLAIN_FEATURES = (datasets.Value, datasets.ClassLabel, datasets.List, datasets.LargeList, dict)


class SourceRow(NamedTuple):
    """One row of a source."""

    id: str
    audio: Mapping[str, Any] | None  # {"bytes", "path"}
    columns: dict[str, Any]  # values of the copied columns


@dataclass(frozen=True)
class Partition:
    """Rows that one process works on."""

    inputs: Callable[[], str]  # returns a hash that changes with the source
    rows: Callable[[int], Iterator[SourceRow]]  # yields the rows from a given index on


@dataclass(frozen=True)
class Source:
    """Source of audio, divided into partitions."""

    name: str  # as given, or the type of a data set object
    features: datasets.Features  # of the copied columns
    partitions: Sequence[Partition]  # in the order of the output's files
    config: str = "default"
    split: str = "train"
    rows: int | None = None  # if known without reading them


class _Layout(NamedTuple):
    """Columns that are read from a data set."""

    audio: str
    columns: tuple[str, ...]
    id: str | None

    def row(self, row: Mapping[str, Any], position: str) -> SourceRow:
        """Row named by its id column, its audio's path, or its position."""
        audio = row[self.audio]
        name = row[self.id] if self.id is not None else (audio or {}).get("path")
        name = position if name is None else mask_secrets(readable_name(str(name)))
        return SourceRow(name, audio, {c: row[c] for c in self.columns})


def open_source(
    source: str | Path | datasets.Dataset | datasets.IterableDataset,
    config: str | None = None,
    split: str | None = None,
    audio_column: str | None = None,
    columns: Sequence[str] | None = (),
    id_column: str | None = None,
    rows_per_partition: int = 1000,
    shuffle: bool = False,
    allow_row_paths: bool = False,
) -> Source:
    """Source divided into partitions, the same ones in every process and run.

    Audio files in a folder (sorted by name) and rows of a `datasets.Dataset` are divided into partitions of
    `rows_per_partition`. Streams (data sets on the Hub, parquet or tar shards, an `IterableDataset`) have one
    partition for each shard; a few parquet files are divided into row groups.

    Args:
        source: A folder of audio files at any depth, of parquet or of tar shards; a parquet or tar file; the name of a
            data set on the Hub; or a data set object.
        config: Configuration of the data set.
        split: Split of the data set; default: all audio files or tar shards of a folder, or the only split.
        audio_column: Name of the audio column; required if it is ambiguous.
        columns: Columns to copy; None copies all. A folder of audio files has `file` (path in the folder) and `label`,
            the class as for `load_labelled_audio`; with metadata, `file` and the columns of these.
        id_column: Column that names the rows; default: the path that is stored with the audio, or the position.
        rows_per_partition: Rows of a partition.
        shuffle: Put audio files of a folder and rows of a `datasets.Dataset` into a fixed random order first. Streams
            keep their order.
        allow_row_paths: As for `load_audio`; rows of a data set object may name any file.

    Raises:
        FileNotFoundError: If there is no such folder, file or data set.
        TypeError: If the source is a dictionary of splits, or no source at all.
        ValueError: If the source holds no audio, lacks the configuration, split or a column, or a column cannot be
            copied.
    """
    wanted = None if columns is None else tuple(dict.fromkeys(columns))
    if not isinstance(source, (str, Path)):
        check_dataset(source)
        if config is not None or split is not None:
            raise ValueError("A data set object has neither config nor split to choose: load the right part instead.")
        opened, name = OpenedStream(source, _state_of(source), "default", "train"), type(source).__name__
        return _dataset(name, opened, audio_column, wanted, id_column, rows_per_partition, shuffle)
    path = local_path(source)
    local = None if path is None else look_into(path, config)
    if local is not None and local.kind == "audio files":
        options = {"id_column": id_column, "rows_per_partition": rows_per_partition, "shuffle": shuffle}
        return _folder(str(source), local, split, audio_column, wanted, allow_row_paths, **options)
    if local is not None and local.kind == "tar shards":
        files = local.files if split is None else local.tars_of(split)
        state = [_file_state(file, readable_name(file.name)) for file in files]
        opened = OpenedStream(open_tars(files), state, "default", split or "train")
    else:
        opened = open_stream(source, config, split, allow_row_paths=allow_row_paths)
    return _dataset(str(source), opened, audio_column, wanted, id_column, rows_per_partition, shuffle)


def _folder(
    name: str,
    source: LocalSource,
    split: str | None,
    audio_column: str | None,
    columns: tuple[str, ...] | None,
    allow_row_paths: bool,
    **options: Any,
) -> Source:
    """Source of audio files, with the columns of their metadata, or `file` and `label`."""
    metadata = source.read_metadata(audio_column)
    if metadata is not None:
        rows = metadata if split is None else metadata.rows_of(split)
        dataset = rows.dataset(None if allow_row_paths else folder_roots(source.path))
        files = [*metadata.sources, *source.files]
        state = [_file_state(file, readable_name(file.relative_to(source.path).as_posix())) for file in files]
        opened = OpenedStream(dataset, state, "default", split or "train")
        options["id_column"] = options["id_column"] or FILE_COLUMN
        return _dataset(name, opened, rows.audio_column, columns, **options)
    layout = source.layout()
    files = source.files if split is None else layout.files_of(split)
    files = random.Random(0).sample(files, len(files)) if options.pop("shuffle") else files
    return _files(name, layout, files, FOLDER_COLUMNS if columns is None else columns, split or "train", **options)


def _files(
    name: str,
    layout: FolderLayout,
    files: Sequence[Path],
    columns: tuple[str, ...],
    split: str,
    id_column: str | None,
    rows_per_partition: int,
) -> Source:
    """Source of audio files without metadata, with the columns `file` and `label`."""
    for column in (*columns, *([id_column] if id_column else [])):
        if column not in FOLDER_COLUMNS:
            raise ValueError(
                f"A folder of audio files has no column {column!r}; it has: {', '.join(FOLDER_COLUMNS)}. For other "
                "columns, write metadata.csv into the folder, with file_name and these columns."
            )
    chunks = [files[start : start + rows_per_partition] for start in range(0, len(files), rows_per_partition)]
    partitions = [
        Partition(partial(_files_hash, layout, chunk), partial(_file_rows, layout, chunk, columns, id_column))
        for chunk in chunks
    ]
    features = datasets.Features({c: datasets.Value("string") for c in columns})
    return Source(name, features, partitions, split=split, rows=len(files))


def _file_rows(
    layout: FolderLayout, files: Sequence[Path], columns: tuple[str, ...], id_column: str | None, start: int
) -> Iterator[SourceRow]:
    for file in files[start:]:
        values: dict[str, Any] = {FILE_COLUMN: layout.name_of(file)}
        if "label" in (*columns, id_column):
            values["label"] = layout.class_of(file)
        name = values[id_column] if id_column else None
        row = {"bytes": None, "path": str(file)}
        yield SourceRow(name or values[FILE_COLUMN], row, {c: values[c] for c in columns})


def _files_hash(layout: FolderLayout, files: Sequence[Path]) -> str:
    return _hash(_file_state(file, layout.name_of(file)) for file in files)


def _file_state(file: Path, name: str) -> list[Any]:
    """State of a file: its name, size and time of change."""
    try:
        stat = file.stat()
    except OSError:  # reading it later lists it as bad
        return [name, None]
    return [name, stat.st_size, stat.st_mtime_ns]


def _state_of(dataset: datasets.Dataset | datasets.IterableDataset) -> Any:
    """State of a data set object: its fingerprint, or a stream's number of shards and columns."""
    if isinstance(dataset, datasets.Dataset):
        return dataset._fingerprint
    return [dataset.num_shards, list(dataset.features or {})]


def _dataset(
    name: str,
    opened: OpenedStream,
    audio_column: str | None,
    columns: tuple[str, ...] | None,
    id_column: str | None,
    rows_per_partition: int,
    shuffle: bool,
) -> Source:
    """Source of a data set: chunks of rows or a stream's shards, without the columns that are not needed."""
    dataset, features = opened.dataset, opened.dataset.features
    audio = find_audio_column(features, audio_column)
    columns = tuple(name for name in features if name != audio) if columns is None else columns
    layout = _Layout(audio, columns, id_column)
    _check_columns(features, layout)
    read = (*columns, *([id_column] if id_column else []))
    dataset = undecoded(dataset, audio, opened.roots).select_columns(list(dict.fromkeys((audio, *read))))
    state, rows = _hash([opened.state]), opened.count_rows()
    if isinstance(dataset, datasets.Dataset):
        rows = len(dataset)
        order = random.Random(0).sample(range(rows), rows) if shuffle else range(rows)
        partitions = [
            Partition(
                partial(_hash, [state, n]), partial(_chunk_rows, dataset, layout, order[n : n + rows_per_partition])
            )
            for n in range(0, max(rows, 1), rows_per_partition)  # without rows, one empty shard has the columns
        ]
    else:
        count = dataset.num_shards
        partitions = [
            Partition(partial(_hash, [state, n, count]), partial(_shard_rows, dataset, layout, n, count))
            for n in range(count)
        ]
    copied = datasets.Features({c: features[c] for c in columns})
    return Source(name, copied, partitions, opened.config, opened.split, rows)


def _check_columns(features: datasets.Features, layout: _Layout) -> None:
    for column in (*layout.columns, *([layout.id] if layout.id else [])):
        if column not in features:
            raise ValueError(f"the data set has no column {column!r}; it has: {', '.join(features)}.")
        if column == layout.audio or not isinstance(features[column], PLAIN_FEATURES):
            kind = type(features[column]).__name__
            raise ValueError(
                f"the column {column!r} holds {kind} and cannot be copied; expected numbers, strings, lists or "
                "dictionaries. Do not name it."
            )


def _chunk_rows(dataset: datasets.Dataset, layout: _Layout, numbers: Sequence[int], start: int) -> Iterator[SourceRow]:
    chosen = numbers[start:]
    for number, row in zip(chosen, dataset.select(chosen)):
        yield layout.row(row, str(number))


def _shard_rows(
    dataset: datasets.IterableDataset, layout: _Layout, shard: int, count: int, start: int
) -> Iterator[SourceRow]:
    rows = dataset.shard(num_shards=count, index=shard)
    # `iter(batch_size=...)` is the only iteration that a surrounding DataLoader does not divide.
    for number, batch in enumerate((rows.skip(start) if start else rows).iter(batch_size=1), start):
        yield layout.row({name: values[0] for name, values in batch.items()}, f"{shard}-{number}")


def _hash(parts: Iterable[Any]) -> str:
    """Hash of values, the same on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, default=str).encode() + b"\n")
    return digest.hexdigest()[:32]


__all__ = ["Partition", "Source", "SourceRow", "open_source"]
