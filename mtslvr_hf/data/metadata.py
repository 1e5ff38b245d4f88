"""Metadata of folders of audio files, as AudioFolder of `datasets` has them: metadata.csv, .jsonl or .parquet."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

from .encoded import EncodedAudio
from .folders import FolderLayout, readable_name

logger = logging.getLogger(__name__)

METADATA_NAMES = frozenset(AudioFolder.METADATA_FILENAMES)
FILE_NAME = "file_name"
DECIMAL = re.compile(r"-?(\d{1,15}\.?|\d*\.\d+)([eE][-+]?\d+)?")  # as a float holds it
AUDIO_COLUMN = "audio"
FILE_COLUMN = "file"


@dataclass(frozen=True)
class FolderMetadata:
    """Rows of a folder's metadata.

    Attributes:
        layout: Splits of the rows' files.
        paths: Path of each row, absolute or as given if it is a URL or absolute; None if there is none.
        table: The other columns, and `file`, the path in the folder, unless there is such a column.
        audio_column: "audio", or NAME of a column `NAME_file_name`.
        sources: The files of metadata.
    """

    layout: FolderLayout
    paths: list[str | None]
    table: pa.Table
    audio_column: str
    sources: list[Path]

    def rows_of(self, split: str) -> FolderMetadata:
        """Rows of a split; ValueError if there is no such split."""
        chosen = set(self.layout.files_of(split))
        indices = [n for n, file in enumerate(self.layout.files) if file in chosen]
        layout = FolderLayout(self.layout.root, [self.layout.files[n] for n in indices])
        paths = [self.paths[n] for n in indices]
        return FolderMetadata(layout, paths, self.table.take(indices), self.audio_column, self.sources)

    def dataset(self, roots: tuple[str, ...] | None) -> datasets.Dataset:
        """Data set of the rows, with undecoded audio; `roots` as for `EncodedAudio`."""
        audio = pa.array([{"bytes": None, "path": path} for path in self.paths], EncodedAudio.pa_type)
        features = datasets.Features.from_arrow_schema(self.table.schema)
        features = datasets.Features({self.audio_column: EncodedAudio(roots=roots), **features})
        columns = [audio, *self.table.columns]
        table = pa.Table.from_arrays(columns, schema=features.arrow_schema)
        return datasets.Dataset(table, datasets.DatasetInfo(features=features))


def read_metadata(
    root: Path, sources: Sequence[Path], audio: Sequence[Path] = (), audio_column: str | None = None
) -> FolderMetadata:
    """Rows of a folder's files of metadata; each names its audio files by paths relative to its own folder.

    Args:
        root: The folder.
        sources: Files of metadata in it.
        audio: Audio files in it; a warning counts those without a row.
        audio_column: NAME of the column `NAME_file_name`; default: `file_name`, or the only one of this form.

    Raises:
        ValueError: If a file cannot be read or has no column of paths. The message names it.
    """
    files: list[Path] = []
    paths: list[str | None] = []
    tables, names = [], set()
    root, audio = Path(os.path.abspath(root)), [Path(os.path.abspath(file)) for file in audio]
    for source in sources:
        here = Path(os.path.abspath(source.parent))
        table = _read_table(source)
        column = _path_column(source, table.column_names, audio_column)
        names.add(column.removesuffix(FILE_NAME).removesuffix("_") or AUDIO_COLUMN)
        for value in table[column].to_pylist():
            path = None if value in (None, "") else str(value)
            local = path is not None and "://" not in path and not os.path.isabs(path)
            full = Path(os.path.normpath(here / path)) if local and path else here / "none"
            files.append(full if full.is_relative_to(root) else here / "none")
            paths.append(str(full) if local else path)
        tables.append(table.drop_columns([column]))
    if len(names) > 1:
        raise ValueError(f"the metadata of {root} have different columns of paths: {', '.join(sorted(names))}.")
    try:
        merged = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise ValueError(f"the metadata of {root} do not fit together: {error}") from error
    _check_listed(root, files, audio)
    if FILE_COLUMN not in merged.column_names:
        inside = [readable_name(file.relative_to(root).as_posix()) for file in files]
        merged = merged.append_column(FILE_COLUMN, pa.array(inside, pa.string()))
    return FolderMetadata(FolderLayout(root, files), paths, merged, names.pop(), list(sources))


def has_paths(source: Path) -> bool:
    """True if a file has a column of paths; one without is somebody's own, as in LJ Speech."""
    if source.suffix == ".csv":
        with source.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            columns = next(csv.reader(lines), [])
    else:
        columns = _read_table(source).column_names
    return any(name == FILE_NAME or name.endswith(f"_{FILE_NAME}") for name in columns)


def _path_column(source: Path, columns: Sequence[str], wanted: str | None) -> str:
    found = [name for name in columns if name == FILE_NAME or name.endswith(f"_{FILE_NAME}")]
    if wanted is not None:
        chosen = [FILE_NAME if wanted == AUDIO_COLUMN else f"{wanted}_{FILE_NAME}"]
        found = [name for name in found if name in chosen]
    if FILE_NAME in found:
        return FILE_NAME
    if len(found) != 1:
        which = f"several columns of paths ({', '.join(found)})" if found else f"no column {FILE_NAME}"
        raise ValueError(f"{source} has {which}; name one with audio_column. Its columns: {', '.join(columns)}.")
    return found[0]


def _read_table(source: Path) -> pa.Table:
    try:
        if source.suffix == ".parquet":
            return pq.read_table(source)
        if source.suffix == ".jsonl":
            return pyarrow.json.read_json(source)
    except pa.ArrowException as error:
        raise ValueError(f"{source} cannot be read: {error}") from error
    rows = list(read_csv(source))
    if not rows:
        raise ValueError(f"{source} is empty; expected a header with {FILE_NAME}, and a row for each audio file.")
    header, *rows = rows
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(
                f"{source}: row {number} has {len(row)} values; expected {len(header)}, as in the header."
            )
    return pa.table({name: _typed([row[n] for row in rows]) for n, name in enumerate(header)})


def read_csv(source: Path) -> Iterator[list[str]]:
    """Rows of a CSV file, with its header first."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as lines:
            yield from (row for row in csv.reader(lines) if row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} cannot be read as a CSV file in UTF-8: {error}.") from error


def _typed(texts: list[str]) -> pa.Array:
    """Column of integers or decimal numbers, if all are written as such, else of texts; "" is null.

    "01", "nan" and whole numbers that neither an int64 nor a float holds are texts.
    """
    column = pa.array([text or None for text in texts], pa.string())
    if column.null_count == len(column):
        return column
    try:
        integers = column.cast(pa.int64())
        return integers if integers.cast(pa.string()).equals(column) else column
    except pa.ArrowInvalid:
        decimal = all(DECIMAL.fullmatch(text) and math.isfinite(float(text)) for text in texts if text)
        return column.cast(pa.float64()) if decimal else column


def _check_listed(root: Path, files: Sequence[Path], audio: Sequence[Path]) -> None:
    unlisted = sorted(set(audio) - set(files))
    if unlisted:
        some = ", ".join(readable_name(file.relative_to(root).as_posix()) for file in unlisted[:3])
        logger.warning(
            "%d of %d audio files of %s have no row in its metadata and are left out: %s",
            *(len(unlisted), len(audio), readable_name(str(root)), some),
        )


def foreign_metadata(sources: Sequence[Path]) -> str:
    """Message for files that are called like metadata and have no paths."""
    names = ", ".join(map(str, sources))
    return (
        f"{names}: no column {FILE_NAME} with paths of audio files, so it is not metadata of the files; give it such "
        "a column, or another name"
    )


__all__ = [
    "AUDIO_COLUMN",
    "FILE_COLUMN",
    "METADATA_NAMES",
    "FolderMetadata",
    "foreign_metadata",
    "has_paths",
    "read_csv",
    "read_metadata",
]
