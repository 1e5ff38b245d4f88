"""Sources of audio: data sets on the Hub, parquet shards, tar shards and folders of audio files."""

from __future__ import annotations

import logging
import random
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import datasets
import pyarrow
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard

from ..audio.errors import READ_ERRORS
from ..audio.files import MAX_FILE_BYTES, refused_bytes, too_large
from ..files import open_regular

logger = logging.getLogger(__name__)

LIBSNDFILE_SUFFIXES = (
    *(".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus"),
    *(".rf64", ".snd", ".w64", ".wav", ".wave"),
)
TORCHCODEC_SUFFIXES = (".aac", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma")
AUDIO_SUFFIXES = frozenset(LIBSNDFILE_SUFFIXES + TORCHCODEC_SUFFIXES)
SPLITS = frozenset(("train", "validation", "valid", "val", "dev", "eval", "test"))
FOLDER_SHARDS = 256
FEW_SHARDS = 16  # fewer files than this are divided into their row groups, which opens each file once
AUDIO_COLUMN = "audio"
SHARD_ERRORS = (*READ_ERRORS, pyarrow.ArrowException, tarfile.TarError, zlib.error)  # corrupt or unreachable shards


@dataclass
class EncodedAudio(datasets.Audio):
    """Audio column of encoded files `{"bytes", "path"}`.

    Unlike `Audio(decode=False)`, it needs no torchcodec for rows that are not from Arrow tables (tar shards, folders).
    """

    decode: bool = False

    def encode_example(self, value: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """Row `{"bytes", "path"}` of a path, bytes or a dictionary."""
        if isinstance(value, str):
            return {"bytes": None, "path": value}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value), "path": None}
        return {"bytes": value.get("bytes"), "path": value.get("path")}


def load_audio(
    name: str | Path,
    config: str | None = None,
    split: str = "train",
    streaming: bool = True,
    audio_column: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
) -> datasets.IterableDataset | datasets.Dataset:
    """Data set of encoded audio from the Hub or from disk, with the one column `audio`: `{"bytes", "path"}`.

    Args:
        name: A data set on the Hub ("agkphysics/AudioSet"); a folder of parquet shards, laid out as on the Hub (its
            README.md lists several `configs:`); a folder of tar shards; a folder of audio files at any depth; a
            parquet or tar file; or, with `data_files`, a builder of datasets ("parquet"). In folders of tar shards or
            audio files, splits are the top-level folders or the first words of the shards' names, if all of these
            name splits; else all is "train".
        config: Configuration of the data set ("balanced").
        split: Split of the data set.
        streaming: True reads rows as they are used; False downloads the data set first (which needs torchcodec for
            tar shards or single files on the Hub).
        audio_column: Name of the audio column; required if it is ambiguous.
        revision: Branch, tag or commit on the Hub.
        token: Token for the Hub. Data sets of single files (not parquet, not tar) use the token of the login.
        data_files: Files to read, as for `datasets.load_dataset`.

    Raises:
        FileNotFoundError: If there is no such folder, file or data set (`DatasetNotFoundError`).
        ValueError: If the folder holds no audio, or the data set has no such configuration, split or audio column.
    """
    path = None if data_files is not None else local_path(name)
    kind, files = ("dataset", []) if path is None else look_into(path, config)
    if path is not None and kind != "dataset":
        return _open_files(kind, files_of_split(files, path, split), streaming)
    if streaming:
        dataset = open_stream(name, config, split, revision, token, data_files).dataset
    else:
        name = str(path or name)
        if path is not None and path.is_file():
            name, data_files = "parquet", {split: name}
        dataset = datasets.load_dataset(
            name, config, split=split, revision=revision, token=token, data_files=data_files
        )
    return audio_rows(dataset, audio_column)


def local_path(name: str | Path) -> Path | None:
    """Path of a local source, or None for the name of a data set on the Hub.

    Raises:
        FileNotFoundError: If the name looks like a path and does not exist.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(f"no such file or folder: {name}.")
    return None


class OpenedStream(NamedTuple):
    """Data set opened as a stream, with all columns."""

    dataset: datasets.IterableDataset
    state: Any  # of its files: times of local ones, the commit on the Hub
    config: str
    split: str
    stated_rows: int | None = None  # number of rows in the data set's metadata
    files: Sequence[str] = ()

    def count_rows(self) -> int | None:
        """Number of rows, from the metadata or the footers of local parquet files; None if it is unknown."""
        if self.stated_rows or any("://" in file or not file.endswith(".parquet") for file in self.files):
            return self.stated_rows
        try:
            return sum(pq.read_metadata(file).num_rows for file in self.files) or None
        except SHARD_ERRORS:  # the reader reports the same error
            return None


def open_stream(
    name: str | Path,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
) -> OpenedStream:
    """Stream of a data set on the Hub, a folder of parquet files or a parquet file; arguments as for `load_audio`.

    `datasets.load_dataset(streaming=True)` would decode folders of files on the Hub.

    Raises:
        ValueError: If no split is given and the data set has several.
    """
    path = None if data_files is not None else local_path(name)
    name = str(path or name)
    if path is not None and path.is_file():
        name, data_files = "parquet", {split or "train": name}
    builder = datasets.load_dataset_builder(name, config, revision=revision, token=token, data_files=data_files)
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
    return OpenedStream(dataset, state, builder.config.name, str(split), rows or None, files or ())


def _divide_into_shards(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """Divides few parquet files into shards of row groups."""
    if dataset.num_shards >= FEW_SHARDS:
        return dataset
    try:
        return dataset.reshard()
    except SHARD_ERRORS as error:
        logger.warning("A shard cannot be read, so none is divided: %s: %s", type(error).__name__, error)
        return dataset


def audio_rows(
    dataset: datasets.IterableDataset | datasets.Dataset, audio_column: str | None = None
) -> datasets.IterableDataset | datasets.Dataset:
    """Data set with the audio column only, named `audio` and undecoded.

    Raises:
        ValueError: If there is no audio column, or several.
    """
    features = dataset.features
    if features is not None and list(features) == [AUDIO_COLUMN] and isinstance(features[AUDIO_COLUMN], EncodedAudio):
        return dataset
    column = find_audio_column(features, audio_column)
    dataset = undecoded(dataset, column).select_columns([column])
    return dataset if column == AUDIO_COLUMN else dataset.rename_column(column, AUDIO_COLUMN)


def undecoded(
    dataset: datasets.IterableDataset | datasets.Dataset, audio_column: str
) -> datasets.IterableDataset | datasets.Dataset:
    """Data set whose audio column has the type `EncodedAudio`. Select columns after it: selection applies types."""
    if isinstance(dataset, datasets.IterableDataset):
        dataset = dataset.decode(False)  # first, to undo the decoding by threads that load_dataset sets up
    return dataset.with_format(None).cast_column(audio_column, EncodedAudio())


def find_audio_files(folder: Path, suffixes: frozenset[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Files of a folder with one of the suffixes, at any depth, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def find_audio_column(features: datasets.Features | None, wanted: str | None) -> str:
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
        raise ValueError(f"the data set has {which}; name one with audio_column. Its columns: {columns}.")
    return found[0]


def look_into(path: Path, config: str | None = None) -> tuple[str, list[Path]]:
    """Kind of a local source ("dataset", "tar shards" or "audio files"), and the files of the latter two.

    Raises:
        ValueError: If it has no known kind, or `config` is given and it has no configurations.
    """
    kind, files = _kind_of(path)
    if kind != "dataset" and config is not None:
        raise ValueError(f"{path} holds {kind} and has no configuration {config!r}. Omit the configuration.")
    return kind, files


def _kind_of(path: Path) -> tuple[str, list[Path]]:
    if path.is_file():
        if path.suffix == ".parquet":
            return "dataset", []
        if _is_tar(path):
            return "tar shards", [path]
        raise ValueError(f"{path} is neither a folder nor a parquet or tar file.")
    if is_dataset(path):
        return "dataset", []
    tars = [file for file in sorted(path.rglob("*")) if _is_tar(file)]
    if tars:
        return "tar shards", tars
    files = find_audio_files(path)
    if files:
        return "audio files", files
    found = ", ".join(f"{n} x {suffix}" for suffix, n in Counter(f.suffix for f in path.rglob("*.*")).most_common(5))
    raise ValueError(
        f"{path} holds neither parquet shards nor tar shards nor audio files; found: {found or 'nothing'}."
    )


def is_dataset(folder: Path) -> bool:
    """True for a folder of parquet files, or one whose README.md lists the files of its configurations."""
    card = folder / "README.md"
    return (card.is_file() and bool(DatasetCard.load(card).data.get("configs"))) or any(folder.rglob("*.parquet"))


def _is_tar(path: Path) -> bool:
    return path.suffix == ".tar" or path.name.endswith((".tar.gz", ".tgz"))


def files_of_split(files: list[Path], root: Path, split: str) -> list[Path]:
    """Files of a split. A folder "train" is no split if other folders have no names of splits."""
    if root.is_file():
        return files
    splits = {file: _split_name(file.relative_to(root)) for file in files}
    if not set(splits.values()) <= SPLITS:
        if split != "train":
            raise ValueError(f"{root} is not divided into splits, so there is no {split!r}; all of it is 'train'.")
        return files
    if split not in splits.values():
        raise ValueError(f"{root} has no split {split!r}; it has: {', '.join(sorted(set(splits.values())))}.")
    return [file for file, name in splits.items() if name == split]


def _split_name(file: Path) -> str:
    """First folder of a relative path; the first word of a tar shard's name ("train-0001.tar") without folder."""
    if len(file.parts) > 1:
        return file.parts[0]
    return re.split(r"[-_.]", file.name)[0] if _is_tar(file) else ""


def _open_files(kind: str, files: list[Path], streaming: bool) -> datasets.IterableDataset | datasets.Dataset:
    """Data set of tar shards, or of audio files in up to 256 shards of a fixed random order."""
    if kind == "tar shards":
        return open_tars(files, streaming)
    features = datasets.Features({AUDIO_COLUMN: EncodedAudio()})
    paths = [str(file) for file in files]
    random.Random(0).shuffle(paths)
    if not streaming:
        return datasets.Dataset.from_dict({AUDIO_COLUMN: paths}, features=features)
    shards = [paths[n::FOLDER_SHARDS] for n in range(min(FOLDER_SHARDS, len(paths)))]
    return datasets.IterableDataset.from_generator(_list_files, features=features, gen_kwargs={"shards": shards})


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
                if member.isfile() and PurePath(member.name).suffix.lower() in AUDIO_SUFFIXES:
                    yield {AUDIO_COLUMN: {"bytes": _member_bytes(tar, member), "path": member.name}}


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Bytes of a file in a tar archive; a larger one than MAX_FILE_BYTES is not read, and becomes a bad row."""
    if member.size > MAX_FILE_BYTES:
        return refused_bytes(too_large(member.size))
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _list_files(shards: list[list[str]]) -> Iterator[dict[str, Any]]:
    for paths in shards:
        for path in paths:
            yield {AUDIO_COLUMN: {"bytes": None, "path": path}}


__all__ = ["AUDIO_COLUMN", "AUDIO_SUFFIXES", "EncodedAudio", "audio_rows", "find_audio_files", "load_audio"]
