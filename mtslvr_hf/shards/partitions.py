"""Partitions of a source for `mtslvr embed` and `cache`: units of work, each with its rows in a fixed order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.parquet as pq

from ..data.shuffling import SHARD_ERRORS
from ..data.sources import (
    AUDIO_COLUMN,
    EncodedAudio,
    divide_into_shards,
    files_of_split,
    find_audio_column,
    look_into,
    read_tars,
)

FOLDER_COLUMNS = ("file", "label")
PLAIN_FEATURES = (datasets.Value, datasets.ClassLabel, datasets.List, datasets.LargeList, dict)


class SourceRow(NamedTuple):
    """One row of a source.

    Attributes:
        id: What the output calls it.
        audio: `{"bytes", "path"}`, or None if the row has no audio.
        columns: Its values in the columns asked for.
    """

    id: str
    audio: Mapping[str, Any] | None
    columns: dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Rows that one process works on.

    Attributes:
        inputs: Gives a hash of what the rows are read from: it changes when that changes.
        rows: Yields the rows from a given one on.
    """

    inputs: Callable[[], str]
    rows: Callable[[int], Iterator[SourceRow]]


@dataclass(frozen=True)
class Source:
    """All there is to work on.

    Attributes:
        name: As it was given, or the type of a data set object.
        features: Types of the columns asked for.
        units: In the order of the output's files.
        config: The configuration they are of; "default" where there is but one and it has no name.
        split: Their split; "train" where there is but one and it has no name.
        rows: Number of rows, if that is known without reading them.
    """

    name: str
    features: datasets.Features
    units: Sequence[Unit]
    config: str = "default"
    split: str = "train"
    rows: int | None = None


class _Layout(NamedTuple):
    """Columns of a data set that are read."""

    audio: str
    columns: tuple[str, ...]
    id: str | None

    def row(self, row: Mapping[str, Any], position: str) -> SourceRow:
        """Names a row by its id column, by its audio's path, or by its position."""
        audio = row[self.audio]
        name = row[self.id] if self.id is not None else (audio or {}).get("path")
        return SourceRow(str(name) if name is not None else position, audio, {c: row[c] for c in self.columns})


def open_source(
    source: str | Path | datasets.Dataset | datasets.IterableDataset,
    config: str | None = None,
    split: str | None = None,
    audio_column: str | None = None,
    columns: Sequence[str] | None = (),
    id_column: str | None = None,
    rows_per_unit: int = 1000,
) -> Source:
    """Divides a source into units of work, the same ones in every process and in every run.

    A folder of audio files is divided into its files in the order of their names, `rows_per_unit` each, and so are the
    rows of a `datasets.Dataset`. What is read as a stream (a name on the Hub, parquet or tar shards, an
    `IterableDataset`) is divided as it is stored: by its shards, which are the row groups where there are few files.

    Args:
        source: A folder of audio files at any depth, of parquet or of tar shards; a parquet or tar file; the name of a
            data set on the Hub; or a data set object.
        config: Configuration of the data set.
        split: Its split. Unless given, all audio files or tar shards of a folder, or a data set's only split.
        audio_column: Needed where several columns could be meant.
        columns: Columns to copy; None copies all. A folder of audio files has `file` (path in the folder) and `label`
            (the name of the folder that the file is in).
        id_column: Column that names the rows; unless given, the path that is stored with the audio, or the place.
        rows_per_unit: Rows of a unit, where that can be chosen.

    Raises:
        FileNotFoundError: If there is neither such a folder or file nor such a data set.
        ValueError: If it holds no audio, lacks what was asked for, or a column cannot be copied.
    """
    wanted = None if columns is None else tuple(dict.fromkeys(columns))
    facts = {"split": split or "train"}
    if isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        if config is not None or split is not None:
            raise ValueError("a data set object has neither config nor split to choose: load the part that is meant")
        name, dataset, state = type(source).__name__, source, _state_of(source)
    else:
        name, path = str(source), Path(source).expanduser()
        if path.exists():
            kind, files = look_into(path)
            if kind != "dataset" and config is not None:
                raise ValueError(f"{path} holds {kind} and has no configuration {config!r}")
            files = files if split is None or kind == "dataset" else files_of_split(files, path, split)
            if kind == "audio files":
                wanted = FOLDER_COLUMNS if wanted is None else wanted
                return _folder(name, path, files, wanted, id_column, rows_per_unit, split or "train")
        elif path.is_absolute() or str(source).startswith((".", "~")) or len(path.parts) > 2:
            raise FileNotFoundError(f"no such file or folder: {source}")
        if path.exists() and kind == "tar shards":
            dataset, state = _tars(files), [_file_state(file, file.name) for file in files]
        else:
            dataset, state, facts = _load(str(path) if path.exists() else str(source), config, split)
    return replace(_dataset(name, dataset, state, audio_column, wanted, id_column, rows_per_unit), **facts)


def _folder(
    name: str,
    root: Path,
    files: Sequence[Path],
    columns: tuple[str, ...],
    id_column: str | None,
    rows_per_unit: int,
    split: str,
) -> Source:
    """Files as rows; `file` and `label` as columns."""
    for column in (*columns, *([id_column] if id_column else [])):
        if column not in FOLDER_COLUMNS:
            raise ValueError(
                f"a folder of audio files has no column {column!r}; it has: {', '.join(FOLDER_COLUMNS)}. For more, "
                "load it as a data set with metadata, and pass that"
            )
    chunks = [files[start : start + rows_per_unit] for start in range(0, len(files), rows_per_unit)]
    units = [
        Unit(partial(_files_hash, root, chunk), partial(_file_rows, root, chunk, columns, id_column))
        for chunk in chunks
    ]
    return Source(
        name, datasets.Features({c: datasets.Value("string") for c in columns}), units, split=split, rows=len(files)
    )


def _file_rows(
    root: Path, files: Sequence[Path], columns: tuple[str, ...], id_column: str | None, start: int
) -> Iterator[SourceRow]:
    for file in files[start:]:
        inside = file.relative_to(root)
        values = {"file": inside.as_posix(), "label": inside.parent.name or None}
        name = values[id_column] if id_column else None
        yield SourceRow(name or values["file"], {"bytes": None, "path": str(file)}, {c: values[c] for c in columns})


def _files_hash(root: Path, files: Sequence[Path]) -> str:
    return _hash(_file_state(file, file.relative_to(root).as_posix()) for file in files)


def _file_state(file: Path, name: str) -> list[Any]:
    """State of a file: its name, size and time of change."""
    try:
        stat = file.stat()
    except OSError:  # it is listed as bad when its turn comes
        return [name, None]
    return [name, stat.st_size, stat.st_mtime_ns]


def _tars(files: Sequence[Path]) -> datasets.IterableDataset:
    features = datasets.Features({AUDIO_COLUMN: EncodedAudio()})
    paths = [str(file) for file in files]
    return datasets.IterableDataset.from_generator(read_tars, features=features, gen_kwargs={"paths": paths})


def _load(name: str, config: str | None, split: str | None) -> tuple[datasets.IterableDataset, Any, dict[str, Any]]:
    """Opens a data set as a stream.

    Also gives the state of its files (times of local ones, the commit on the Hub), and what `Source` says of it.
    """
    if Path(name).is_file():
        builder = datasets.load_dataset_builder("parquet", data_files={split or "train": name})
    else:
        builder = datasets.load_dataset_builder(name, config)
    if hasattr(builder.config, "decode_num_threads"):
        builder.config.decode_num_threads = 0  # as load_audio: rows would be encoded, by torchcodec
    parts = builder.as_streaming_dataset(split=split)
    if split is None:
        if len(parts) != 1:
            raise ValueError(f"the data set has the splits {', '.join(parts)}: choose one with `split`")
        split, parts = next(iter(parts.items()))
    files = (builder.config.data_files or {}).get(split)
    state = [str(builder.hash)] if files is None else [[Path(f).name for f in files], files.origin_metadata]
    said = (builder.info.splits or {}).get(split)
    rows = said.num_examples if said else _count_rows(files or [])
    return divide_into_shards(parts), state, {"config": builder.config.name, "split": split, "rows": rows or None}


def _count_rows(files: Sequence[str]) -> int | None:
    """Number of rows of local parquet files."""
    if any("://" in file or not file.endswith(".parquet") for file in files):
        return None
    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except SHARD_ERRORS:  # found out again, and told, where it is read
        return None


def _state_of(dataset: datasets.Dataset | datasets.IterableDataset) -> Any:
    """State of a data set object: its fingerprint, or a stream's shards and columns."""
    if isinstance(dataset, datasets.Dataset):
        return dataset._fingerprint
    return [dataset.num_shards, list(dataset.features or {})]


def _dataset(
    name: str,
    dataset: datasets.Dataset | datasets.IterableDataset,
    state: Any,
    audio_column: str | None,
    columns: tuple[str, ...] | None,
    id_column: str | None,
    rows_per_unit: int,
) -> Source:
    """Chunks of rows or a stream's shards as units; other columns' contents are not read."""
    features = dataset.features
    audio = find_audio_column(features, audio_column)
    columns = tuple(name for name in features if name != audio) if columns is None else columns
    layout = _Layout(audio, columns, id_column)
    _check_columns(features, layout)
    if isinstance(dataset, datasets.IterableDataset):
        dataset = dataset.decode(False)
    # The type comes before the selection, which applies the types it finds.
    dataset = dataset.with_format(None).cast_column(layout.audio, EncodedAudio())
    dataset = dataset.select_columns(
        list(dict.fromkeys((layout.audio, *columns, *([id_column] if id_column else []))))
    )
    state = _hash([state])
    if isinstance(dataset, datasets.Dataset):
        starts = range(0, len(dataset), rows_per_unit)
        units = [
            Unit(partial(_hash, [state, n]), partial(_chunk_rows, dataset, layout, n, rows_per_unit)) for n in starts
        ]
        return Source(name, datasets.Features({c: features[c] for c in columns}), units, rows=len(dataset))
    count = dataset.num_shards
    units = [
        Unit(partial(_hash, [state, n, count]), partial(_shard_rows, dataset, layout, n, count)) for n in range(count)
    ]
    return Source(name, datasets.Features({c: features[c] for c in columns}), units)


def _check_columns(features: datasets.Features, layout: _Layout) -> None:
    for column in (*layout.columns, *([layout.id] if layout.id else [])):
        if column not in features:
            raise ValueError(f"the data set has no column {column!r}; it has: {', '.join(features)}")
        if column == layout.audio or not isinstance(features[column], PLAIN_FEATURES):
            kind = type(features[column]).__name__
            raise ValueError(
                f"the column {column!r} holds {kind} and is not copied; columns of numbers, strings, lists and "
                "dictionaries are"
            )


def _chunk_rows(dataset: datasets.Dataset, layout: _Layout, first: int, rows: int, start: int) -> Iterator[SourceRow]:
    chosen = range(first + start, min(first + rows, len(dataset)))
    for number, row in zip(chosen, dataset.select(chosen)):
        yield layout.row(row, str(number))


def _shard_rows(
    dataset: datasets.IterableDataset, layout: _Layout, shard: int, count: int, start: int
) -> Iterator[SourceRow]:
    rows = dataset.shard(num_shards=count, index=shard)
    # `iter(batch_size=...)` is the one way through a stream that a surrounding DataLoader does not divide.
    for number, batch in enumerate((rows.skip(start) if start else rows).iter(batch_size=1), start):
        yield layout.row({name: values[0] for name, values in batch.items()}, f"{shard}-{number}")


def _hash(parts: Iterable[Any]) -> str:
    """The same for the same values on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, default=str).encode() + b"\n")
    return digest.hexdigest()[:32]


__all__ = ["Source", "SourceRow", "Unit", "open_source"]
