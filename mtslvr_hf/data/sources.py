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
# A corrupt shard, or one that cannot be reached.
SHARD_ERRORS = (*READ_ERRORS, pyarrow.ArrowException, tarfile.TarError, zlib.error)


@dataclass
class EncodedAudio(datasets.Audio):
    """An audio column that stays encoded: rows are `{"bytes", "path"}`.

    `Audio(decode=False)` needs torchcodec nonetheless where rows do not come from Arrow tables (tar shards, folders).
    """

    decode: bool = False

    def encode_example(self, value: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """Gives a path, bytes or a dictionary of both the form of a row."""
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
    """Opens a data set of encoded audio, wherever it is.

    Args:
        name: A data set on the Hub ("agkphysics/AudioSet"); a folder of parquet shards, laid out as on the Hub (with
            `configs:` in its README.md, if there are several); a folder of tar shards; a folder of audio files at any
            depth; a single parquet or tar file; or, with `data_files`, one of the builders of datasets ("parquet").
            In folders of tar shards or audio files, a split is a top-level folder or the first word of the shard's
            name, if all of them are; else everything is "train".
        config: Configuration of the data set ("balanced").
        split: Its split.
        streaming: Whether rows are read as they are used; otherwise the data set is downloaded first (for which
            datasets needs torchcodec if it is a data set of tar shards or single files on the Hub).
        audio_column: Name of the column; needed where several could be meant.
        revision: Branch, tag or commit on the Hub.
        token: Token for the Hub. Data sets of single files (not parquet, not tar) use the one logged in with.
        data_files: Files to read, as for `datasets.load_dataset`.

    Returns:
        A data set of the one column `audio`, `{"bytes", "path"}`, undecoded.

    Raises:
        FileNotFoundError: If there is neither such a folder or file nor such a data set (`DatasetNotFoundError`).
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
        FileNotFoundError: If it is written like a path and nothing is there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(f"no such file or folder: {name}.")
    return None


class OpenedStream(NamedTuple):
    """A data set opened as a stream.

    Attributes:
        dataset: The rows, with all columns.
        state: State of its files: times of local ones, the commit on the Hub.
        config: Name of its configuration.
        split: Name of its split.
        rows: Number of rows, if that is known without reading them.
    """

    dataset: datasets.IterableDataset
    state: Any
    config: str
    split: str
    rows: int | None


def open_stream(
    name: str | Path,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
) -> OpenedStream:
    """Opens a data set on the Hub, a folder of parquet files or a parquet file as a stream.

    `datasets.load_dataset(streaming=True)` would decode folders of files on the Hub by threads.

    Args:
        name: As for `load_audio`.
        config: Configuration of the data set.
        split: Its split; unless given, its only one.
        revision: Branch, tag or commit on the Hub.
        token: Token for the Hub.
        data_files: Files to read, as for `datasets.load_dataset`.

    Raises:
        ValueError: If no split is given and the data set has several.
    """
    path = None if data_files is not None else local_path(name)
    name = str(path or name)
    if path is not None and path.is_file():
        name, data_files = "parquet", {split or "train": name}
    builder = datasets.load_dataset_builder(name, config, revision=revision, token=token, data_files=data_files)
    if hasattr(builder.config, "decode_num_threads"):
        builder.config.decode_num_threads = 0  # or the rows would be encoded, by torchcodec, before they can be cast
    dataset = builder.as_streaming_dataset(split=split)
    if split is None:
        if len(dataset) != 1:
            raise ValueError(f"the data set has the splits {', '.join(dataset)}: choose one with `split`.")
        split, dataset = next(iter(dataset.items()))
    files = (builder.config.data_files or {}).get(split)
    state = [str(builder.hash)] if files is None else [[Path(f).name for f in files], files.origin_metadata]
    said = (builder.info.splits or {}).get(split)
    rows = said.num_examples if said else _count_rows(files or [])
    return OpenedStream(_divide_into_shards(dataset), state, builder.config.name, str(split), rows or None)


def _count_rows(files: Sequence[str]) -> int | None:
    """Number of rows of local parquet files."""
    if any("://" in file or not file.endswith(".parquet") for file in files):
        return None
    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except SHARD_ERRORS:  # the reader meets the same error, and reports it
        return None


def _divide_into_shards(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """Makes shards of the row groups of parquet files if there are few files."""
    if dataset.num_shards >= FEW_SHARDS:
        return dataset
    try:
        return dataset.reshard()
    except SHARD_ERRORS as error:
        logger.warning("shards are left whole, as one cannot be read: %s: %s", type(error).__name__, error)
        return dataset


def audio_rows(
    dataset: datasets.IterableDataset | datasets.Dataset, audio_column: str | None = None
) -> datasets.IterableDataset | datasets.Dataset:
    """Reduces a data set to its audio, named `audio` and undecoded.

    Raises:
        ValueError: If it has no audio column (the message lists those it has), or several.
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
    """Gives a data set's audio column the type `EncodedAudio`. Select columns after it: selection applies types."""
    if isinstance(dataset, datasets.IterableDataset):
        dataset = dataset.decode(
            False
        )  # first, or it would not undo the decoding by threads that load_dataset sets up
    return dataset.with_format(None).cast_column(audio_column, EncodedAudio())


def find_audio_files(folder: Path, suffixes: frozenset[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Lists the files of a folder with one of the suffixes, at any depth, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def find_audio_column(features: datasets.Features | None, wanted: str | None) -> str:
    """Names the audio column: one of type Audio, or of bytes, or binary and named like an audio suffix."""
    if features is None:
        raise ValueError("the data set does not say what its columns are; `dataset.cast(features)` sets them.")
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
        ValueError: If it is none of these, or has no configurations and one is asked for.
    """
    kind, files = _kind_of(path)
    if kind != "dataset" and config is not None:
        raise ValueError(f"{path} holds {kind} and has no configuration {config!r}.")
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
    """True for a folder of parquet files, or one whose README.md names the files of its configurations."""
    card = folder / "README.md"
    return (card.is_file() and bool(DatasetCard.load(card).data.get("configs"))) or any(folder.rglob("*.parquet"))


def _is_tar(path: Path) -> bool:
    return path.suffix == ".tar" or path.name.endswith((".tar.gz", ".tgz"))


def files_of_split(files: list[Path], root: Path, split: str) -> list[Path]:
    """Keeps the files of a split. A class called "train" among others is no split."""
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
    """First folder of a relative path, or for tar shards that lie flat ("train-0001.tar") the first word."""
    if len(file.parts) > 1:
        return file.parts[0]
    return re.split(r"[-_.]", file.name)[0] if _is_tar(file) else ""


def _open_files(kind: str, files: list[Path], streaming: bool) -> datasets.IterableDataset | datasets.Dataset:
    """Opens tar shards as shards, or audio files in up to 256 shards that each hold a fixed random part of them."""
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
    """Opens tar shards as a data set of their audio files; a stream has a shard for each."""
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    features = datasets.Features({AUDIO_COLUMN: EncodedAudio()})
    return kind.from_generator(_read_tars, features=features, gen_kwargs={"paths": [str(file) for file in files]})


def _read_tars(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the audio files in tar shards; what else lies beside them (labels, texts) is passed over."""
    for path in paths:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if member.isfile() and PurePath(member.name).suffix.lower() in AUDIO_SUFFIXES:
                    file = tar.extractfile(member)
                    assert file is not None  # only of what is no regular file
                    yield {AUDIO_COLUMN: {"bytes": file.read(), "path": member.name}}


def _list_files(shards: list[list[str]]) -> Iterator[dict[str, Any]]:
    for paths in shards:
        for path in paths:
            yield {AUDIO_COLUMN: {"bytes": None, "path": path}}


__all__ = ["AUDIO_COLUMN", "AUDIO_SUFFIXES", "EncodedAudio", "audio_rows", "find_audio_files", "load_audio"]
