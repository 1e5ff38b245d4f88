"""Sources of audio: data sets on the Hub, parquet shards, tar shards and folders of audio files."""

from __future__ import annotations

import logging
import random
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import datasets
import pyarrow
import pyarrow.parquet as pq

from ..audio.errors import Exceptions, read_errors
from ..audio.files import MAX_FILE_BYTES, refused_bytes, too_large
from ..files import open_regular
from .encoded import EncodedAudio, folder_roots, repository_roots, roots_of_files
from .folders import readable_name
from .local import AUDIO_SUFFIXES, LocalSource, data_files_of, local_path, look_into
from .metadata import AUDIO_COLUMN

logger = logging.getLogger(__name__)

FOLDER_SHARDS = 256
FEW_SHARDS = 16  # fewer files than this are divided into their row groups, which opens each file once


def load_audio(
    name: str | Path,
    config: str | None = None,
    split: str = "train",
    streaming: bool = True,
    audio_column: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    allow_row_paths: bool = False,
) -> datasets.IterableDataset | datasets.Dataset:
    """Data set of encoded audio from the Hub or from disk, with the one column `audio`: `{"bytes", "path"}`.

    Args:
        name: A data set on the Hub ("agkphysics/AudioSet"); a folder of parquet shards, laid out as on the Hub (its
            README.md lists several `configs:`); a folder of tar shards; a folder of audio files at any depth, of which
            `metadata.csv` or `.jsonl`, if any, lists those that count; a parquet or tar file; or, with `data_files`, a
            builder of datasets ("parquet"). In folders of tar shards or audio files, splits are folders, or words in
            the shards' names, if all of these name splits (see `FolderLayout`); else all is "train". Hidden files and
            folders do not count. Links to folders are followed.
        config: Configuration of the data set ("balanced").
        split: Split of the data set.
        streaming: True reads rows as they are used; False downloads the data set first (which needs torchcodec for
            tar shards or single files on the Hub).
        audio_column: Name of the audio column; required if it is ambiguous.
        revision: Branch, tag or commit on the Hub.
        token: Token for the Hub. Data sets of single files (not parquet, not tar) use the token of the login.
        data_files: Files to read, as for `datasets.load_dataset`.
        allow_row_paths: Whether rows without bytes may name any file or URL. By default, they may name only files
            below the data set's folder or in its repository; others are bad rows.

    Raises:
        FileNotFoundError: If there is no such folder, file or data set (`DatasetNotFoundError`).
        ValueError: If the folder holds no audio, or the data set has no such configuration, split or audio column.
    """
    path = None if data_files is not None else local_path(name)
    source = None if path is None else look_into(path, config)
    if source is not None and source.kind == "tar shards":
        return open_tars(source.tars_of(split), streaming)
    if source is not None and source.kind == "audio files":
        return _open_files(source, split, streaming, audio_column, allow_row_paths)
    if streaming:
        opened = open_stream(name, config, split, revision, token, data_files, allow_row_paths)
        return audio_rows(opened.dataset, audio_column, opened.roots)
    dataset, roots = load_whole(name, config, split, revision, token, data_files, allow_row_paths)
    return audio_rows(dataset, audio_column, roots)


class OpenedStream(NamedTuple):
    """Data set opened as a stream, with all columns."""

    dataset: datasets.IterableDataset
    state: Any  # of its files: times of local ones, the commit on the Hub
    config: str
    split: str
    stated_rows: int | None = None  # number of rows in the data set's metadata
    files: Sequence[str] = ()
    roots: tuple[str, ...] | None = None  # of files that rows may name, see `EncodedAudio`

    def count_rows(self) -> int | None:
        """Number of rows, from the metadata or the footers of local parquet files; None if it is unknown."""
        if self.stated_rows or any("://" in file or not file.endswith(".parquet") for file in self.files):
            return self.stated_rows
        try:
            return sum(pq.read_metadata(file).num_rows for file in self.files) or None
        except shard_errors():  # the reader reports the same error
            return None


def open_stream(
    name: str | Path,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    allow_row_paths: bool = False,
) -> OpenedStream:
    """Stream of a data set on the Hub, a folder of parquet files or a parquet file; arguments as for `load_audio`.

    `datasets.load_dataset(streaming=True)` would decode folders of files on the Hub.

    Raises:
        ValueError: If no split is given and the data set has several.
    """
    builder, roots = _open_builder(name, config, split, revision, token, data_files, allow_row_paths)
    if hasattr(builder.config, "decode_num_threads"):
        builder.config.decode_num_threads = 0  # or torchcodec would encode the rows before the cast
    dataset = builder.as_streaming_dataset(split=split)
    if split is None:
        if len(dataset) != 1:
            raise ValueError(f"The data set has the splits {', '.join(dataset)}: choose one with `split`.")
        split, dataset = next(iter(dataset.items()))
    files = (builder.config.data_files or {}).get(split)
    state = [str(builder.hash)] if files is None else [[Path(f).name for f in files], files.origin_metadata]
    said = (builder.info.splits or {}).get(split)
    rows = said.num_examples if said else None
    dataset = _divide_into_shards(dataset)
    return OpenedStream(dataset, state, builder.config.name, str(split), rows or None, files or (), roots)


def load_whole(
    name: str | Path,
    config: str | None,
    split: str,
    revision: str | None = None,
    token: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    allow_row_paths: bool = False,
) -> tuple[datasets.Dataset, tuple[str, ...] | None]:
    """Data set that is downloaded and prepared, with all columns, and its roots; as `open_stream` else."""
    builder, roots = _open_builder(name, config, split, revision, token, data_files, allow_row_paths)
    builder.download_and_prepare()
    return builder.as_dataset(split=split), roots


def _open_builder(
    name: str | Path,
    config: str | None,
    split: str | None,
    revision: str | None,
    token: str | None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None,
    allow_row_paths: bool,
) -> tuple[Any, tuple[str, ...] | None]:
    """Builder of `datasets` and the roots of its rows' files, see `EncodedAudio`."""
    path = None if data_files is not None else local_path(name)
    given, name = data_files, str(path or name)
    if path is not None:
        data_files = data_files_of(look_into(path), config, split or "train")
        name = name if data_files is None else "parquet"
    builder = datasets.load_dataset_builder(name, config, revision=revision, token=token, data_files=data_files)
    if allow_row_paths:
        return builder, None
    if path is not None:
        return builder, folder_roots(path if path.is_dir() else path.parent)
    if given is None:
        return builder, repository_roots(name)
    return builder, roots_of_files(file for files in (builder.config.data_files or {}).values() for file in files)


def _divide_into_shards(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """Divides few parquet files into shards of row groups."""
    if dataset.num_shards >= FEW_SHARDS:
        return dataset
    try:
        return dataset.reshard()
    except shard_errors() as error:
        logger.warning("A shard cannot be read, so none is divided: %s: %s", type(error).__name__, error)
        return dataset


def audio_rows(
    dataset: datasets.IterableDataset | datasets.Dataset,
    audio_column: str | None = None,
    roots: tuple[str, ...] | None = None,
    hint: str = "name one with audio_column",
) -> datasets.IterableDataset | datasets.Dataset:
    """Data set with the audio column only, named `audio` and undecoded.

    Args:
        dataset: A data set.
        audio_column: Name of the column; required if it is ambiguous.
        roots: Folders and URLs of the files that rows may name, see `EncodedAudio`; default: rows may name any file.
        hint: Advice in the error for an ambiguous column.

    Raises:
        TypeError: If it is no data set, or a `DatasetDict` of several.
        ValueError: If there is no audio column, or several.
    """
    check_dataset(dataset)
    features = dataset.features
    if features is not None and list(features) == [AUDIO_COLUMN] and isinstance(features[AUDIO_COLUMN], EncodedAudio):
        return dataset
    column = find_audio_column(features, audio_column, hint)
    dataset = undecoded(dataset, column, roots).select_columns([column])
    return dataset if column == AUDIO_COLUMN else dataset.rename_column(column, AUDIO_COLUMN)


def check_dataset(dataset: Any) -> None:
    """Raises TypeError if an object is no data set; a dictionary of splits is named."""
    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise TypeError(
            f"a {type(dataset).__name__} of the splits {', '.join(dataset)} came, and one data set is expected: "
            f"choose one, as in dataset[{next(iter(dataset), 'train')!r}]."
        )
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(f"a {type(dataset).__name__} came; expected a datasets.Dataset or IterableDataset.")


def undecoded(
    dataset: datasets.IterableDataset | datasets.Dataset, audio_column: str, roots: tuple[str, ...] | None = None
) -> datasets.IterableDataset | datasets.Dataset:
    """Data set whose audio column has the type `EncodedAudio`. Select columns after it: selection applies types."""
    if isinstance(dataset.features[audio_column], EncodedAudio):
        return dataset.with_format(None)
    if isinstance(dataset, datasets.IterableDataset):
        dataset = dataset.decode(False)  # first, to undo the decoding by threads that load_dataset sets up
    return dataset.with_format(None).cast_column(audio_column, EncodedAudio(roots=roots))


def find_audio_column(
    features: datasets.Features | None, wanted: str | None, hint: str = "name one with audio_column"
) -> str:
    """Name of the audio column: one of type Audio, or with bytes, or binary and named like an audio suffix."""
    if features is None:
        raise ValueError("The columns of the data set are unknown; set them with `dataset.cast(features)`.")
    columns = ", ".join(features)
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"the data set has no column {wanted!r}; it has: {columns}.")
        return wanted
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    found = found or [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    found = found or [
        name
        for name, feature in features.items()
        if getattr(feature, "dtype", None) == "binary" and PurePath(f"x.{name}").suffix in AUDIO_SUFFIXES
    ]
    if AUDIO_COLUMN in found:
        return AUDIO_COLUMN
    if len(found) != 1:
        which = f"several audio columns ({', '.join(found)})" if found else "no audio column"
        raise ValueError(f"the data set has {which}; {hint}. Its columns: {columns}.")
    return found[0]


def _open_files(
    source: LocalSource, split: str, streaming: bool, audio_column: str | None, allow_row_paths: bool
) -> datasets.IterableDataset | datasets.Dataset:
    """Data set of audio files, in up to 256 shards of a fixed random order."""
    metadata = source.read_metadata(audio_column)
    paths: list[str | None]
    if metadata is None:
        roots, paths = None, [str(file) for file in source.layout().files_of(split)]
    else:
        roots = None if allow_row_paths else folder_roots(source.path)
        paths = metadata.rows_of(split).paths
    features = datasets.Features({AUDIO_COLUMN: EncodedAudio(roots=roots)})
    random.Random(0).shuffle(paths)
    if streaming:
        shards = [paths[n::FOLDER_SHARDS] for n in range(min(FOLDER_SHARDS, len(paths)))]
        return datasets.IterableDataset.from_generator(_list_files, features=features, gen_kwargs={"shards": shards})
    odd = [path for path in paths if path is not None and readable_name(path) != path]
    if odd:
        raise ValueError(
            f"{readable_name(odd[0])}: the name is not UTF-8, which a table of `datasets` cannot hold; use "
            f"streaming=True, or rename it. There are {len(odd)} such files."
        )
    return datasets.Dataset.from_dict({AUDIO_COLUMN: paths}, features=features)


def open_tars(files: Sequence[Path], streaming: bool = True) -> datasets.IterableDataset | datasets.Dataset:
    """Data set of the audio files in tar shards; a stream has one shard for each."""
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    features = datasets.Features({AUDIO_COLUMN: EncodedAudio()})
    return kind.from_generator(_read_tars, features=features, gen_kwargs={"paths": [str(file) for file in files]})


def _read_tars(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the audio files in tar shards; ignores other files (labels, texts)."""
    for path in paths:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                name = PurePath(member.name)
                hidden = any(part.startswith(".") and part.strip(".") for part in name.parts)
                if member.isfile() and name.suffix.lower() in AUDIO_SUFFIXES and not hidden:
                    yield {AUDIO_COLUMN: {"bytes": _member_bytes(tar, member), "path": readable_name(member.name)}}


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Bytes of a file in a tar archive; a larger one than MAX_FILE_BYTES is not read, and becomes a bad row."""
    if member.size > MAX_FILE_BYTES:
        return refused_bytes(too_large(member.size))
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def shard_errors() -> Exceptions:
    """Exceptions of corrupt or unreachable shards; see `read_errors`."""
    return read_errors(pyarrow.ArrowException, tarfile.TarError, zlib.error)


def _list_files(shards: list[list[str | None]]) -> Iterator[dict[str, Any]]:
    for paths in shards:
        for path in paths:
            yield {AUDIO_COLUMN: {"bytes": None, "path": path}}


__all__ = [
    "AUDIO_COLUMN",
    "OpenedStream",
    "audio_rows",
    "check_dataset",
    "find_audio_column",
    "load_audio",
    "load_whole",
    "open_stream",
    "open_tars",
    "shard_errors",
    "undecoded",
]
